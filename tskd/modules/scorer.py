"""Perplexity of the teacher's own responses, under the base and under the teacher."""

from collections.abc import Sequence

from torch import Tensor

from tskd.models import LanguageModel, hidden_states, same_tokenizer, vocabulary_head
from tskd.modules.batches import PaddedBatch, TokenSequence, by_length, check_context, encode_response, pad_right
from tskd.modules.trainer import LightningTrainer, Resident
from tskd.perplexity import mean_by_row, token_nll
from tskd.records import Response, Scored


class Scorer(Resident):
    """Mean nll of each row of a batch, under every model: the same code, batch and positions for all of them.

    In bfloat16 the nll of one text moves by a percent or two with the code path and the padding, which would decide
    whether a gap reaches a threshold; so base and teacher are never scored by different means.
    """

    label = "score"

    def __init__(self, models: Sequence[LanguageModel], sequences: Sequence[TokenSequence]) -> None:
        super().__init__(*(model.weights for model in models))
        self.models = models
        self.sequences = sequences

    def compute(self, indices: list[int]) -> list[tuple[float, ...]]:
        batch = pad_right([self.sequences[i] for i in indices], self.models[-1].pad_token).to(self.device)
        columns = [self.mean_nll(model, batch).tolist() for model in self.models]
        return list(zip(*columns, strict=True))

    def mean_nll(self, model: LanguageModel, batch: PaddedBatch) -> Tensor:
        """Nats per target token, one for each row: (B,)."""
        with model.speaking() as network:
            hidden = hidden_states(network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]
            nll = token_nll(hidden, batch.labels, lambda part: vocabulary_head(network, part))
        return mean_by_row(nll, batch.rows, len(batch.input_ids))


def score(
    responses: Sequence[Response], base: LanguageModel, teacher: LanguageModel, trainer: LightningTrainer
) -> list[Scored]:
    """Each response with its nll under ``base`` and ``teacher``, in nats per token of the teacher, in the order given.

    Where the two share a tokenizer they read the same token ids, in the same batch. A stand-in base with another
    tokenizer reads the same text through its own template; there only the sums over the response are comparable (per
    byte, that is), so its sum too is divided by the number of the teacher's tokens, which keeps the threshold's unit.
    """
    sequences = _encode(responses, teacher)
    if same_tokenizer(base.weights, teacher.weights):
        nll = _nll([base, teacher], sequences, trainer)
    else:
        others = _encode(responses, base)
        tokens = [(theirs.num_targets, ours.num_targets) for theirs, ours in zip(others, sequences, strict=True)]
        under_base = _nll([base], others, trainer)
        under_teacher = _nll([teacher], sequences, trainer)
        nll = [
            (mean * theirs / ours, teachers)
            for (mean,), (teachers,), (theirs, ours) in zip(under_base, under_teacher, tokens, strict=True)
        ]
    return [
        Scored(response, base_nll=of_base, teacher_nll=of_teacher, tokens=sequence.num_targets)
        for response, sequence, (of_base, of_teacher) in zip(responses, sequences, nll, strict=True)
    ]


def _encode(responses: Sequence[Response], model: LanguageModel) -> list[TokenSequence]:
    sequences = [encode_response(model, r.prompt, r.text, r.finished) for r in responses]
    check_context(model, max((len(sequence.ids) for sequence in sequences), default=0), "The longest response")
    return sequences


def _nll(
    models: Sequence[LanguageModel], sequences: Sequence[TokenSequence], trainer: LightningTrainer
) -> list[tuple[float, ...]]:
    """The mean nll of each sequence under each model."""
    batches = by_length([len(sequence.ids) for sequence in sequences], trainer.batch_tokens)
    results = trainer.predict(Scorer(models, sequences), batches)
    return [results[i] for i in range(len(sequences))]
