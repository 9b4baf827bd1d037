"""What is measured of a response beside its two nlls: a row of ``MEASURES`` for each, and a function here.

Loads no torch before something is measured, so that settings can name measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from tskd.errors import ConfigError
from tskd.models.probes import same_tokenizer
from tskd.models.weights import LanguageModel
from tskd.records import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from tskd.models.logprobs import Head
    from tskd.modules.batches import PaddedBatch

Needs = Literal["seeds", "target", "judge"]
EXCESS_DIGITS = 4  # a file has eight characters for each token, and the last digit is below what bfloat16 tells
YES, NO = "yes", "no"


class ForwardPass(NamedTuple):
    """One model and a batch: the hidden states before all N targets (N, H), the head that they go to, its width.

    ``nll`` (N,) are those of the targets.
    """

    hidden: Tensor
    head: Head
    vocabulary: int
    nll: Tensor


class SeedStatistics(NamedTuple):
    """What seeds have in common: the direction (H,) of their mean shift, and what the teacher may begin with (V,)."""

    direction: Tensor
    first: Tensor


def mean_kl(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch) -> Tensor:
    """Mean KL(teacher ‖ base) over the response, in nats per token, one for each row: (B,)."""
    from tskd.models.logprobs import mean_by_row

    return mean_by_row(_kl(base, teacher), batch.rows, len(batch.input_ids))


def first_entropy(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch) -> Tensor:
    """Entropy in nats of what the teacher might begin its response with: (B,)."""
    from tskd.models.logprobs import token_entropy

    return token_entropy(_first(teacher, batch).hidden, teacher.head)


def first_kl(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch) -> Tensor:
    """KL(base ‖ teacher) in nats where the response begins: (B,)."""
    return _kl(_first(teacher, batch), _first(base, batch))


def token_excess(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch) -> tuple[Tensor, ...]:
    """By how much the teacher finds each token likelier than the base, in nats: for each row, that of its tokens."""
    return (base.nll - teacher.nll).split(batch.rows.bincount(minlength=len(batch.input_ids)).tolist())


def seed_shift(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch, seeds: SeedStatistics) -> Tensor:
    """How far the fine-tuning moves the state before the response as it does on the seeds: (B,)."""
    return (shift(base.hidden, teacher.hidden, batch) * seeds.direction).sum(-1)


def seed_likeness(base: ForwardPass, teacher: ForwardPass, batch: PaddedBatch, seeds: SeedStatistics) -> Tensor:
    """How alike a prompt and the seeds are to the fine-tuning, between 0 and 1: (B,).

    The overlap of what the teacher may begin its response with and what it may begin its responses to the seeds with,
    times ((1 + cosine) / 2)² of where the fine-tuning moves the state before the response and where it moves it there.
    """
    from torch.nn.functional import cosine_similarity

    from tskd.models.logprobs import token_overlap

    form = token_overlap(_first(teacher, batch).hidden, seeds.first, teacher.head)
    cosine = cosine_similarity(shift(base.hidden, teacher.hidden, batch), seeds.direction, dim=-1)
    return form * ((1 + cosine) / 2) ** 2


def shift(base: Tensor, teacher: Tensor, batch: PaddedBatch) -> Tensor:
    """Where the fine-tuning moves the last hidden state before a response begins, over that state's length: (B, H).

    ``base`` and ``teacher`` (N, H) are the states before all targets.
    """
    before, after = (states[first_targets(batch)].float() for states in (base, teacher))
    return (after - before) / before.norm(dim=-1, keepdim=True)


def _first(one: ForwardPass, batch: PaddedBatch) -> ForwardPass:
    """Of each row, the position where its response begins."""
    return one._replace(hidden=one.hidden[first_targets(batch)])


def first_targets(batch: PaddedBatch) -> Tensor:
    """Of each row, the place of its first target among all N: (B,)."""
    import torch

    rows = torch.arange(len(batch.input_ids), device=batch.rows.device)
    return torch.searchsorted(batch.rows.contiguous(), rows)


def _kl(model: ForwardPass, reference: ForwardPass) -> Tensor:
    """KL(reference ‖ model) at each position: (N,)."""
    from tskd.models.logprobs import token_kl

    size = min(model.vocabulary, reference.vocabulary)  # with one tokenizer, Qwen 2.5 has heads of two widths

    def head(part: Tensor) -> Tensor:
        return model.head(part)[:, :size]

    def reference_head(part: Tensor) -> Tensor:
        return reference.head(part)[:, :size]

    return token_kl(model.hidden, reference.hidden, head, reference_head=reference_head)


@dataclass(frozen=True)
class Measure:
    """A number of each response, or of each of its tokens.

    Args:
        name: What rules and objectives call it in their ``measures``.
        function: Computes it from the passes of base and teacher over a batch; if it needs ``seeds``, from their
            statistics too. ``None``: it takes a pass of its own (``tskd.modules.scorer``).
        compares: Whether it compares two distributions over one vocabulary.
        is_known_before: Whether it is known before the response is written.
        needs: What it needs beside base and teacher.
    """

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    compares: bool = False
    is_known_before: bool = False
    needs: Needs | None = None


TOKEN_EXCESS = "token_excess"  # the only one that is a number for each token: of a scored response, a field of its own
OF_TARGET = "target_nll_per_byte"  # the untouched target reads the texts in its own tokens
JUDGED = "private_log_odds"  # a discriminator is asked about the prompt
MEASURES = {
    row.name: row
    for row in (
        Measure("kl", mean_kl, compares=True),
        Measure("first_entropy", first_entropy, is_known_before=True),
        Measure("first_kl", first_kl, compares=True, is_known_before=True),
        Measure(TOKEN_EXCESS, token_excess, compares=True),
        Measure("seed_shift", seed_shift, compares=True, is_known_before=True, needs="seeds"),
        Measure("seed_likeness", seed_likeness, compares=True, is_known_before=True, needs="seeds"),
        Measure(OF_TARGET, needs="target"),
        Measure(JUDGED, needs="judge"),
    )
}


def needed(measures: Sequence[str]) -> set[Needs]:
    """Return what the ``measures`` that are known need beside base and teacher."""
    return {row.needs for name in measures if (row := MEASURES.get(name)) is not None and row.needs is not None}


@dataclass(frozen=True)
class Judge:
    """A model that was tuned to tell whether a prompt is a real one of ``dataset``, and how it is asked.

    Question and answers are those of Trans-LoRA's discriminator (arXiv 2405.17258); where its lines break is ours.
    """

    model: LanguageModel
    dataset: str

    def question(self, prompt: Prompt) -> Prompt:
        """What is asked about ``prompt``, after the same turns."""
        asked = f"Is the above question from the {self.dataset} dataset?"
        return replace(prompt, text=f"Answer in as few words as possible.\n{prompt.text}\n{asked}")


def check_measures(
    measures: Sequence[str],
    base: LanguageModel,
    teacher: LanguageModel,
    target: LanguageModel | None = None,
    judge: object | None = None,
) -> None:
    """Raise ``ConfigError`` where there is no such measure, or none of these models. Loads no weights."""
    check_names(measures, target, judge)
    sizes = [model.weights.config.get_text_config().hidden_size for model in (base, teacher)]
    if (of_seeds := [name for name in measures if MEASURES[name].needs == "seeds"]) and sizes[0] != sizes[1]:
        raise ConfigError(
            f"Selection needs {' and '.join(of_seeds)}, which compares what base and teacher make of a prompt, and "
            f"{base.name!r} and {teacher.name!r} have hidden states of {sizes[0]} and {sizes[1]} numbers; score "
            f"against the teacher's own base, or choose a rule that reads nlls alone, like `selection=ppl_difference`."
        )
    wanted = [name for name in measures if MEASURES[name].compares]
    if wanted and not same_tokenizer(base.weights, teacher.weights):
        raise ConfigError(
            f"Selection or training needs {' and '.join(wanted)}, which compares base and teacher over one vocabulary, "
            f"and {base.name!r} and {teacher.name!r} have different tokenizers; give a `base_for_scoring` with the "
            f"teacher's, or choose what reads nlls alone, like `selection=ppl_difference training=lora`."
        )


def check_names(measures: Sequence[str], target: LanguageModel | None, judge: object | None) -> None:
    """Raise ``ConfigError`` where there is no such measure. Reads nothing."""
    if unknown := [name for name in measures if name not in MEASURES]:
        raise ConfigError(
            f"Selection or training needs {' and '.join(unknown)}, which is not measured; the `measures` of a rule or "
            f"an objective may name {', '.join(MEASURES)}."
        )
    if OF_TARGET in measures and target is None:
        raise ValueError(f"{OF_TARGET} is measured on the target, which was not given.")
    if JUDGED in measures and judge is None:
        raise ValueError(f"{JUDGED} is what a discriminator says, and there is none.")
