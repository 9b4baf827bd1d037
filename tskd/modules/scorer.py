"""Perplexity of the teacher's own responses, under the base and under the teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tskd.models import LanguageModel, hidden_states, vocabulary_head
from tskd.modules.batches import PaddedBatch, by_length, check_context, encode_response, pad_right
from tskd.modules.trainer import LightningTrainer, Resident
from tskd.perplexity import mean_by_row, token_nll
from tskd.records import Response, Scored


class Scorer(Resident):
    """Mean nll of each row of a batch, under every model: the same code, batch and positions for all of them.

    In bfloat16 the nll of one text moves by a percent or two with the code path and the padding, which would decide
    whether a gap reaches a threshold; so base and teacher are never scored by different means.
    """

    label = "score"

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        super().__init__()
        self.models = models
        self.networks = torch.nn.ModuleList({id(m.weights): m.weights.model for m in models}.values())

    def predict_step(self, batch: tuple[list[int], PaddedBatch]) -> list[int]:
        indices, padded = batch
        columns = [self.mean_nll(model, padded).tolist() for model in self.models]
        self.results.update(zip(indices, zip(*columns, strict=True), strict=True))
        return indices

    def mean_nll(self, model: LanguageModel, batch: PaddedBatch) -> Tensor:
        """Nats per target token, one for each row: (B,)."""
        with model.speaking() as network:
            hidden = hidden_states(network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]
            nll = token_nll(hidden, batch.labels, lambda part: vocabulary_head(network, part))
        return mean_by_row(nll, batch.rows, len(batch.input_ids))


def score(
    responses: Sequence[Response], base: LanguageModel, teacher: LanguageModel, trainer: LightningTrainer
) -> list[Scored]:
    """Each response with its mean nll under ``base`` and ``teacher``, in the order given.

    Both read the same token ids, made by the teacher's tokenizer.
    """
    sequences = [encode_response(teacher, r.prompt, r.text, r.finished) for r in responses]
    lengths = [len(sequence.ids) for sequence in sequences]
    check_context(teacher, max(lengths, default=0), "The longest response")
    batches = [
        (batch, pad_right([sequences[i] for i in batch], teacher.pad_token))
        for batch in by_length(lengths, trainer.max_batch_tokens)
    ]
    nll = trainer.predict(Scorer([base, teacher]), batches)
    return [
        Scored(response, base_nll=nll[i][0], teacher_nll=nll[i][1], tokens=sequences[i].num_targets)
        for i, response in enumerate(responses)
    ]
