"""How likely models find texts: perplexity of the teacher's own responses, and the measures of selection rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tskd.models.encoding import TokenSequence, check_context, encode_response
from tskd.models.logprobs import Head, mean_by_row, token_nll
from tskd.models.networks import hidden_states, vocabulary_head
from tskd.models.probes import same_tokenizer
from tskd.models.weights import LanguageModel
from tskd.modules.batches import by_length, pad_right
from tskd.modules.measures import (
    EXCESS_DIGITS,
    JUDGED,
    MEASURES,
    NO,
    OF_TARGET,
    TOKEN_EXCESS,
    YES,
    ForwardPass,
    Judge,
    SeedStatistics,
    check_measures,
    first_targets,
    needed,
    shift,
)
from tskd.modules.resident import Resident
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response, Scored
from tskd.runtime import processes


class Scorer(Resident):
    """Mean nll of each row of a batch, under every model: the same code, batch and positions for all of them.

    In bfloat16 the nll of one text moves by a percent or two with the code path and the padding, which would decide
    whether a gap reaches a threshold; so base and teacher are never scored by different means. The ``measures``, which
    compare the first of the models with the last, are made of the same hidden states.
    """

    def __init__(
        self,
        models: Sequence[LanguageModel],
        sequences: Sequence[TokenSequence],
        measures: Sequence[str] = (),
        seen: Sequence[SeedStatistics] = (),
        label: str = "score",
    ) -> None:
        super().__init__(*(model.weights for model in models))
        self.label = label
        self.models = models
        self.sequences = sequences
        self.measures = measures
        self.seen = seen  # for each sequence, what it is compared with

    def content(self) -> Any:
        directions = [each.direction.tolist() for each in self.seen]  # the rest of it is of the same pass
        return [self.models, repr(self.sequences), self.measures, repr(directions)]

    def from_journal(self, noted: Any) -> tuple[Any, ...]:
        return tuple(noted)

    def compute(self, indices: list[int]) -> list[tuple[Any, ...]]:
        """For each sequence, its nll under each model and then its measures."""
        batch = pad_right([self.sequences[i] for i in indices], self.models[-1].pad_token).to(self.device)
        columns: list[Tensor | tuple[Tensor, ...]] = []
        passes = []
        for model in self.models:
            with model.speaking() as network:
                hidden = hidden_states(network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]
                nll = token_nll(hidden, batch.labels, lambda part: vocabulary_head(network, part))
            columns.append(mean_by_row(nll, batch.rows, len(indices)))
            if self.measures:
                vocabulary = model.weights.config.get_text_config().vocab_size
                passes.append(ForwardPass(hidden, _head(model), vocabulary, nll))
        for name in self.measures:
            measure, seeds = MEASURES[name], tuple[SeedStatistics, ...]()
            if measure.needs == "seeds":
                parts = zip(*(self.seen[i] for i in indices), strict=True)
                seeds = (SeedStatistics(*(torch.stack(part).to(self.device) for part in parts)),)
            assert measure.function is not None
            columns.append(measure.function(passes[0], passes[-1], batch, *seeds))
        return list(zip(*map(_plain, columns), strict=True))


class SeedReader(Resident):
    """Of each prompt, what is to be known before it is answered: the shift, and what the teacher may begin with."""

    label = "read seeds"

    def __init__(self, base: LanguageModel, teacher: LanguageModel, sequences: Sequence[TokenSequence]) -> None:
        super().__init__(base.weights, teacher.weights)
        self.models = (base, teacher)
        self.sequences = sequences

    def compute(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """For each sequence, its shift (H,) and the probabilities of its first token (V,), in fp32 on the CPU."""
        batch = pad_right([self.sequences[i] for i in indices], self.models[-1].pad_token).to(self.device)
        states = []
        for model in self.models:
            with model.speaking() as network:
                hidden = hidden_states(network, batch.input_ids, batch.attention_mask)
            states.append(hidden[batch.rows, batch.columns])
        first = _head(self.models[-1])(states[-1][first_targets(batch)]).float().softmax(-1)
        return list(zip(shift(states[0], states[1], batch).cpu(), first.cpu(), strict=True))


@processes.on_all_ranks()
def score(
    responses: Sequence[Response],
    base: LanguageModel,
    teacher: LanguageModel,
    trainer: LightningTrainer,
    measures: Sequence[str] = (),
    target: LanguageModel | None = None,
    seeds: Sequence[Prompt] = (),
    label: str = "score",
    judge: Judge | None = None,
) -> list[Scored]:
    """Each response with its nll under ``base`` and ``teacher``, in nats per token of the teacher, in the order given.

    Where the two share a tokenizer they read the same token ids, in the same batch. A stand-in base with another
    tokenizer reads the same text through its own template; there only the sums over the response are comparable (per
    byte, that is), so its sum too is divided by the number of the teacher's tokens, which keeps the threshold's unit.
    ``measures`` are what else is wanted, of which ``target_nll_per_byte`` needs the ``target``, ``seed_shift`` and
    ``seed_likeness`` the ``seeds`` and ``private_log_odds`` the ``judge``; see ``tskd.modules.measures``.
    """
    check_measures(measures, base, teacher, target, judge)
    sequences = _encode(responses, teacher)
    in_passing = [name for name in measures if MEASURES[name].function is not None]
    seen = _seen(responses, seeds, base, teacher, trainer) if "seeds" in needed(measures) else ()
    if same_tokenizer(base.weights, teacher.weights):
        rows = _read([base, teacher], sequences, trainer, in_passing, seen, label)
    else:
        others = _encode(responses, base)
        under_base = _read([base], others, trainer)
        under_teacher = _read([teacher], sequences, trainer, in_passing)
        tokens = [(theirs.num_targets, ours.num_targets) for theirs, ours in zip(others, sequences, strict=True)]
        rows = [
            (mean * theirs / ours, *teachers)
            for (mean,), teachers, (theirs, ours) in zip(under_base, under_teacher, tokens, strict=True)
        ]
    measured = [dict(zip(in_passing, row[2:], strict=True)) for row in rows]
    excess = [tuple(round(value, EXCESS_DIGITS) for value in found.pop(TOKEN_EXCESS, ())) for found in measured]
    if OF_TARGET in measures and target is not None:
        for found, value in zip(measured, _nll_per_byte(responses, target, trainer), strict=True):
            found[OF_TARGET] = value
    if JUDGED in measures and judge is not None:
        for found, value in zip(measured, _log_odds(responses, judge, trainer), strict=True):
            found[JUDGED] = value
    return [
        Scored(response, row[0], row[1], sequence.num_targets, found, of_tokens)
        for response, sequence, row, found, of_tokens in zip(responses, sequences, rows, measured, excess, strict=True)
    ]


class LikelihoodReader(Resident):
    """The log-likelihood of the targets of sequences. Those that differ in their last token alone are read once."""

    label = "evaluate"

    def __init__(self, model: LanguageModel, sequences: Sequence[TokenSequence]) -> None:
        super().__init__(model.weights)
        self.model = model
        self.sequences = sequences
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, sequence in enumerate(sequences):
            alike.setdefault((sequence.first_target, sequence.ids[:-1]), []).append(index)
        self.groups = list(alike.values())

    def content(self) -> Any:
        return [self.model, repr(self.sequences)]

    def compute(self, indices: list[int]) -> list[list[float]]:
        """For each of the groups ``indices``, what its sequences have, in nats."""
        groups = [[self.sequences[i] for i in self.groups[index]] for index in indices]
        batch = pad_right([group[0] for group in groups], self.model.pad_token).to(self.device)
        places = torch.arange(len(batch.rows)).split([group[0].num_targets for group in groups])
        at = torch.cat([place for place, group in zip(places, groups, strict=True) for _ in group]).to(self.device)
        members = [sequence for group in groups for sequence in group]
        labels = torch.tensor([token for each in members for token in each.ids[each.first_target :]]).to(self.device)
        with self.model.speaking() as network:
            hidden = hidden_states(network, batch.input_ids, batch.attention_mask)[batch.rows, batch.columns]
            nll = token_nll(hidden[at], labels, lambda part: vocabulary_head(network, part))
        found = iter([-float(part.sum()) for part in nll.split([each.num_targets for each in members])])
        return [[next(found) for _ in group] for group in groups]


@processes.on_all_ranks()
def log_likelihoods(model: LanguageModel, sequences: Sequence[TokenSequence], trainer: LightningTrainer) -> list[float]:
    """log p(targets | what is before them) in nats for each of ``sequences``, in the order given."""
    check_context(model, max((len(sequence.ids) for sequence in sequences), default=0), "The longest text")
    trainer.make_room(model.weights)
    reader = LikelihoodReader(model, sequences)
    lengths = [len(sequences[group[0]].ids) for group in reader.groups]
    results = trainer.predict(reader, by_length(lengths, trainer.batch_tokens, trainer.pass_cost(model.weights)))
    of_each = {i: value for n, group in enumerate(reader.groups) for i, value in zip(group, results[n], strict=True)}
    return [of_each[i] for i in range(len(sequences))]


def _read(
    models: Sequence[LanguageModel],
    sequences: Sequence[TokenSequence],
    trainer: LightningTrainer,
    measures: Sequence[str] = (),
    seen: Sequence[SeedStatistics] = (),
    label: str = "score",
) -> list[tuple[Any, ...]]:
    """The mean nll of each sequence under each model, and then its measures."""
    trainer.make_room(*(model.weights for model in models))
    lengths, max_padding = [len(sequence.ids) for sequence in sequences], trainer.pass_cost(models[0].weights)
    batches = by_length(lengths, trainer.batch_tokens, max_padding)
    results = trainer.predict(Scorer(models, sequences, measures, seen, label), batches)
    return [results[i] for i in range(len(sequences))]


def _seen(
    responses: Sequence[Response],
    seeds: Sequence[Prompt],
    base: LanguageModel,
    teacher: LanguageModel,
    trainer: LightningTrainer,
) -> list[SeedStatistics]:
    """For each response, what the seeds have in common; for a seed's own response, what the others have."""
    trainer.make_room(base.weights, teacher.weights)
    sequences = _encode([Response(seed, "") for seed in seeds], teacher)
    lengths, max_padding = [len(sequence.ids) for sequence in sequences], trainer.pass_cost(teacher.weights)
    module = SeedReader(base, teacher, sequences)
    read: Mapping[int, tuple[Tensor, Tensor]] = trainer.predict(
        module, by_length(lengths, trainer.batch_tokens, max_padding)
    )
    found = {seed: read[i] for i, seed in enumerate(seeds)}
    moved, begun = (torch.stack(part).sum(0) for part in zip(*found.values(), strict=True))
    of_all = SeedStatistics(normalize(moved, dim=0), begun / len(found))
    asked = {response.prompt for response in responses}
    of_others = {
        seed: SeedStatistics(normalize(moved - way, dim=0), (begun - first).clamp(min=0) / max(1, len(found) - 1))
        for seed, (way, first) in found.items()
        if seed in asked
    }
    return [of_others.get(response.prompt, of_all) for response in responses]


def _nll_per_byte(responses: Sequence[Response], model: LanguageModel, trainer: LightningTrainer) -> list[float]:
    """The nll of each response, end token included, over the bytes of its text (an empty one counts as one byte)."""
    sequences = _encode(responses, model)
    num_bytes = [max(1, len(response.text.encode("utf-8", "surrogatepass"))) for response in responses]
    rows = _read([model], sequences, trainer)
    return [
        mean * sequence.num_targets / size for (mean,), sequence, size in zip(rows, sequences, num_bytes, strict=True)
    ]


def _log_odds(responses: Sequence[Response], judge: Judge, trainer: LightningTrainer) -> list[float]:
    """By how much ``judge`` finds "yes" likelier than "no", end token included, as the answer about each prompt."""
    questions = [judge.question(response.prompt) for response in responses]
    sequences = _encode([Response(question, answer) for question in questions for answer in (YES, NO)], judge.model)
    rows = _read([judge.model], sequences, trainer)
    totals = [mean * sequence.num_targets for (mean,), sequence in zip(rows, sequences, strict=True)]
    return [no - yes for yes, no in zip(totals[::2], totals[1::2], strict=True)]


def _encode(responses: Sequence[Response], model: LanguageModel) -> list[TokenSequence]:
    sequences = [encode_response(model, r.prompt, r.text, r.finished) for r in responses]
    check_context(model, max((len(sequence.ids) for sequence in sequences), default=0), "The longest response")
    return sequences


def _plain(column: Tensor | tuple[Tensor, ...]) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else [row.tolist() for row in column]


def _head(model: LanguageModel) -> Head:
    """The head as ``model`` uses it: base and teacher may be one network, whose adapter may be on its head."""

    def head(part: Tensor) -> Tensor:
        network = model.weights.model
        if isinstance(network.get_output_embeddings(), nn.Linear):  # and no adapter's layer
            return vocabulary_head(network, part)
        with model.speaking() as network:  # takes 10 to 40 ms, as long as a slice
            return vocabulary_head(network, part)

    return head
