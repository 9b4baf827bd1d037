"""What of the teacher's responses a target learns: which tokens carry the loss, and what is added to it.

Without an objective every response token counts alike, by its nll (TuneShift-KD). An objective is a callable from the
corpus, the two models and the trainer to a ``Loss``, made anew before each training; what it needs measured in scoring,
it names in ``measures`` (``tskd.modules.measures``). One of your own is in a file of yours, say ``my_objectives.py``:

    @dataclass(frozen=True)
    class EachAlike:
        \"\"\"Each response counts alike, however long it is.\"\"\"

        def __call__(self, corpus, target, teacher, trainer):
            return MeanOfMeans([len(token_ends(target, example.response)) for example in corpus])

    @dataclass(frozen=True)
    class MeanOfMeans:
        num_targets: list[int]

        def __call__(self, nll, hidden, head, part, batch):
            weights = torch.cat([torch.full((n,), 1 / n) for n in (self.num_targets[i] for i in part)])
            return (nll * weights.to(nll.device)).sum() / len(batch)

with ``training.objective={_target_:my_objectives.EachAlike}`` and ``allow=my_objectives``. The cache knows its code
and settings (``tskd.storage.fingerprint``): after an edit of either, the target is trained again.

Two tokenizers are compared by the text that their tokens cover: see ``aligned``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from tskd.models.alignment import _check_offsets, aligned, token_ends
from tskd.models.encoding import TokenSequence, encode_response
from tskd.models.logprobs import Head, token_top, token_uld
from tskd.models.networks import hidden_states, vocabulary_head
from tskd.models.weights import LanguageModel
from tskd.modules.batches import by_length, pad_right
from tskd.modules.measures import TOKEN_EXCESS
from tskd.modules.resident import Resident
from tskd.modules.trainer import LightningTrainer
from tskd.records import Scored
from tskd.runtime import processes


class Loss(Protocol):
    """What is minimised. It travels to other processes, so it holds plain values and tensors on the CPU."""

    def __call__(self, nll: Tensor, hidden: Tensor, head: Head, part: Sequence[int], batch: Sequence[int]) -> Tensor:
        """What the examples ``part`` contribute to the loss of ``batch``, so that contributions add up to it.

        Both are indices into the corpus. ``nll`` (N,) and ``hidden`` (N, H), which goes to the head, are those of the
        target tokens of ``part``, one example after another.
        """


class Objective(Protocol):
    def __call__(
        self, corpus: Sequence[Scored], target: LanguageModel, teacher: LanguageModel, trainer: LightningTrainer
    ) -> Loss:
        """The loss of a training on ``corpus``."""


@dataclass(frozen=True)
class TokenWeighted:
    """Of a batch's tokens, the ``fraction`` that the teacher finds likelier than the base by most carries the loss.

    TiTok (Jung & Kim 2026, arXiv 2510.04682): the mean nll over the best 70 % of a batch's tokens by *excess*, which is
    log p(teacher) - log p(base). A target token has the mean excess of the teacher's tokens that it is aligned with, as
    there; unlike its code, which maps a choice made on the teacher's tokens, the excess itself is mapped, and the
    choice made on the target's. Those that tie with the last chosen are chosen too.
    """

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.7

    measures: ClassVar[tuple[str, ...]] = (TOKEN_EXCESS,)

    def check_models(self, target: LanguageModel, teacher: LanguageModel) -> None:
        _check_offsets(target, teacher)

    def __call__(
        self, corpus: Sequence[Scored], target: LanguageModel, teacher: LanguageModel, trainer: LightningTrainer
    ) -> Loss:
        return TopTokens(self.fraction, [_excess_of_target_tokens(example, target, teacher) for example in corpus])


@dataclass(frozen=True)
class TopTokens:
    """The mean nll of the tokens with the highest ``excess``, which is given for each example, (num_targets,)."""

    fraction: float
    excess: Sequence[Tensor]

    def __call__(self, nll: Tensor, hidden: Tensor, head: Head, part: Sequence[int], batch: Sequence[int]) -> Tensor:
        of_batch = torch.cat([self.excess[i] for i in batch])
        least = of_batch.topk(max(1, int(self.fraction * len(of_batch)))).values[-1]
        carries = torch.cat([self.excess[i] for i in part]) >= least
        return nll[carries.to(nll.device)].sum() / int((of_batch >= least).sum())


@dataclass(frozen=True)
class SoftLabels:
    """The mean nll, and ``weight`` times how far the target is from what the teacher would have said instead.

    The latter is the mean ULD distance (``tskd.models.logprobs.token_uld``) over the places where both have read the
    same text: before the first token of each aligned group. GOLD (TRL) aligns so too, and multiplies the distribution
    there by the probabilities of the group's other tokens; here it is compared as it is. ULD asks how sure the teacher
    is and between how many, not of what: vocabularies need nothing in common, and the nll must stay beside it.

    Approximate: of the teacher, the ``top`` largest probabilities are known, in half precision. They are measured once
    per training, in a pass of the teacher over the corpus, and kept in main memory: 2 * ``top`` bytes for each group,
    which has a token or more. Each step computes the logits of those places once more.
    """

    weight: NonNegativeFloat = 1.0
    top: PositiveInt = 64

    def check_models(self, target: LanguageModel, teacher: LanguageModel) -> None:
        _check_offsets(target, teacher)

    def __call__(
        self, corpus: Sequence[Scored], target: LanguageModel, teacher: LanguageModel, trainer: LightningTrainer
    ) -> Loss:
        responses = [example.response for example in corpus]
        ends = [token_ends(target, response) for response in responses]
        groups = [aligned(token_ends(teacher, r), ours) for r, ours in zip(responses, ends, strict=True)]
        size = min(self.top, *(model.weights.config.get_text_config().vocab_size for model in (target, teacher)))
        theirs = [[first[0] for first, _ in of_response] for of_response in groups]
        sequences = [encode_response(teacher, r.prompt, r.text, r.finished) for r in responses]
        return NllAndUld(
            weight=self.weight,
            num_targets=[len(each) for each in ends],
            places=[[first[0] for _, first in of_response] for of_response in groups],
            references=top_probabilities(sequences, theirs, teacher, trainer, size),
        )


@dataclass(frozen=True)
class NllAndUld:
    """For each example, how many targets it has, which of them are compared, and with which probabilities (P, K)."""

    weight: float
    num_targets: Sequence[int]
    places: Sequence[Sequence[int]]
    references: Sequence[Tensor]

    def __call__(self, nll: Tensor, hidden: Tensor, head: Head, part: Sequence[int], batch: Sequence[int]) -> Tensor:
        places = _joined([self.places[i] for i in part], [self.num_targets[i] for i in part]).to(hidden.device)
        references = torch.cat([self.references[i] for i in part]).to(hidden.device).float()
        distance = token_uld(hidden[places], references, head).sum() / max(1, sum(len(self.places[i]) for i in batch))
        return nll.sum() / sum(self.num_targets[i] for i in batch) + self.weight * distance


class TopProbabilities(Resident):
    """The likeliest next tokens at some of the targets of each sequence, (P, count), in half precision on the CPU."""

    label = "read soft labels"

    def __init__(
        self, model: LanguageModel, sequences: Sequence[TokenSequence], places: Sequence[Sequence[int]], count: int
    ) -> None:
        super().__init__(model.weights)
        self.model = model
        self.sequences = sequences
        self.places = places
        self.count = count

    def compute(self, indices: list[int]) -> list[Tensor]:
        batch = pad_right([self.sequences[i] for i in indices], self.model.pad_token).to(self.device)
        places = [self.places[i] for i in indices]
        at = _joined(places, [self.sequences[i].num_targets for i in indices]).to(self.device)
        with self.model.speaking() as network:
            hidden = hidden_states(network, batch.input_ids, batch.attention_mask)[batch.rows[at], batch.columns[at]]
            found = token_top(hidden, lambda part: vocabulary_head(network, part), self.count)
        return [each.clone() for each in found.half().cpu().split([len(each) for each in places])]


@processes.on_all_ranks()
def top_probabilities(
    sequences: Sequence[TokenSequence],
    places: Sequence[Sequence[int]],
    model: LanguageModel,
    trainer: LightningTrainer,
    count: int,
) -> list[Tensor]:
    """For each sequence, the ``count`` largest probabilities of ``model`` at the P targets ``places``: (P, count)."""
    trainer.make_room(model.weights)
    batches = by_length([len(each.ids) for each in sequences], trainer.batch_tokens, trainer.pass_cost(model.weights))
    results = trainer.predict(TopProbabilities(model, sequences, places, count), batches)
    return [results[i] for i in range(len(sequences))]


def _excess_of_target_tokens(example: Scored, target: LanguageModel, teacher: LanguageModel) -> Tensor:
    """(num_targets,); a token that is aligned with none of the teacher's has none."""
    theirs, ours = (token_ends(model, example.response) for model in (teacher, target))
    if len(theirs) != len(example.token_excess):
        raise ValueError(f"A response of {len(theirs)} tokens was scored with {len(example.token_excess)} excesses.")
    excess = torch.zeros(len(ours))
    for of_teacher, of_target in aligned(theirs, ours):
        excess[of_target] = sum(example.token_excess[i] for i in of_teacher) / len(of_teacher)
    return excess


def _joined(places: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
    """Places in sequences as places in all of them, laid one after another."""
    starts = accumulate(lengths[:-1], initial=0)
    found = [start + each for start, of_one in zip(starts, places, strict=True) for each in of_one]
    return torch.tensor(found, dtype=torch.long)
