"""Estimate what a run will read, write, hold in memory and find in the cache. Loads no weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from tskd.config.build import Run, build
from tskd.errors import ConfigError, NothingToLearn
from tskd.models.checkpoint import adapter_folder, is_here
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.memory import Size
from tskd.models.weights import LanguageModel, Weights
from tskd.modules.lora import KEPT
from tskd.modules.measures import YES, Judge
from tskd.records import Adapter, Expansion, Message, Prompt, Response, Scored, Screening, Selection
from tskd.stages.answer import Gold
from tskd.stages.discriminator import TrainedJudge
from tskd.stages.expand import Private
from tskd.stages.teacher import Finetuned
from tskd.stages.train import Replay, TrainLora
from tskd.stages.writers import LocalWriter
from tskd.storage.result_cache import learnt
from tskd.tasks import Benchmark
from tskd.tuneshift import Stages, ask_all, tuneshift

Text = Prompt | Response
Models = Sequence[LanguageModel]
UNWRITTEN = "(not written yet)"  # the text of a response, and the first parent of a prompt, that stand for one to come
LIGHTER = "lower `trainer.max_batch_tokens` or choose a smaller `dtype`"
BOUNDS = ("writer", "num_drafts", "drawn", "max_new_tokens", "longest")  # what an expansion must have


@dataclass(frozen=True)
class Count:
    """How many; ``is_most`` where it may be fewer."""

    number: int
    is_most: bool = False

    def __str__(self) -> str:
        return f"{'≤ ' if self.is_most else ''}{self.number:,}"


Reading = tuple[Count, Count | None, int]
Seconds = float | None
Training = TrainLora | Finetuned | None


@dataclass(frozen=True)
class Work:
    """One result that a run needs; ``iteration`` is ``None`` before the first, ``reads`` and ``writes`` are tokens.

    ``seconds`` is what it has cost, where the store holds it. ``reads`` and ``memory`` (bytes) are ``None`` where they
    depend on a model that is not on this machine.
    """

    iteration: int | None
    stage: str
    models: str
    items: Count
    reads: Count | None
    writes: Count
    memory: int | None
    seconds: float | None

    @property
    def effort(self) -> int:
        """The tokens that its time goes by: those it generates, or those it reads where that is not its purpose."""
        counted = self.reads if self.stage == "train" or not self.writes.number else self.writes
        return counted.number if counted else 0


@dataclass
class Plan:
    """What a run will do. It has stages of its own, which note their work and hand on what the store holds.

    From the first prompts or answers on that it does not hold, they hand on stand-ins for the most that can come: no
    draft is a repeat, each text is as long as it may be, and all is kept.
    """

    run: Run
    work: list[Work] = field(default_factory=list)
    sizes: dict[Weights, Size] = field(default_factory=dict)  # of those that are on this machine
    here: set[LanguageModel] = field(default_factory=set)  # those whose adapter, if they have one, is too
    lengths: dict[tuple[Weights, Text], int] = field(default_factory=dict)
    iteration: int | None = None
    is_known: bool = True  # whether the store has held all prompts and answers up to here
    end: str | None = None  # why the run is sure to end without an adapter

    def estimate(self, work: Work) -> float | None:
        """Seconds, at the rate of the stored results of the same stage and models; ``None`` where there are none."""
        made = [w for w in self.work if w.seconds is not None and (w.stage, w.models) == (work.stage, work.models)]
        effort = sum(each.effort for each in made)
        return work.effort * sum(each.seconds or 0.0 for each in made) / effort if effort else None

    @property
    def memory(self) -> int | None:
        """Bytes that the work to do takes at most; ``None`` where they depend on a model that is not here."""
        needed = [work.memory for work in self.work if work.seconds is None]
        return None if None in needed else max(needed, default=0)  # type: ignore[type-var]

    def stages(self) -> Stages:
        return Stages(self.expand, self.answer, self.score, self.select, self.train, self.screen)

    def find(self, model: LanguageModel) -> None:
        """Note whether ``model`` is on this machine. Raises ``ModelError`` where it cannot be anywhere."""
        weights, adapter = model.weights, model.adapter
        if weights not in self.sizes:
            if not is_here(weights.checkpoint.path, lambda: weights.folder):
                return
            self.sizes[weights] = weights.size
        is_made = model is not self.run.teacher or self.run.teacher_to_make is None
        if adapter is None or (is_made and is_here(adapter, lambda: adapter_folder(adapter))):
            self.here.add(model)

    def before(self) -> None:
        """The models; the teacher, where it has to be made, and its answers, where questions have none; evaluations."""
        run = self.run
        for model in run.models.values():
            self.find(model)
        if self.has_all and (run.teacher in self.here or run.teacher_to_make is not None):
            run.check_models()
        if run.teacher_to_make is not None and isinstance(run.task, Benchmark):
            examples = [Response(question.prompt, str(question.answer)) for question in run.task.examples()]
            recipe, reading = run.teacher_to_make, self._reading([run.base], examples, run.teacher_to_make.lora.epochs)
            self._note("train", [run.base], reading, self._replayed(recipe.replay, 0), None, recipe)
        if any(question.answer is None for question in run.evaluator.questions):
            self.ask("answer", run.teacher, None)
        for model in (run.base, run.teacher, run.target):
            self.evaluate(model)

    def evaluate(self, model: LanguageModel) -> None:
        _, seconds = self._look("evaluate", [model], self.run.evaluator, model)
        self.ask("evaluate", model, seconds)

    def ask(self, stage: str, model: LanguageModel, seconds: Seconds) -> None:
        """The held-out questions, before which a benchmark may show examples; of choices it takes the likeliest."""
        task, new, turns = self.run.task, self.run.settings.task["response_tokens"], list[Message]()
        if isinstance(task, Benchmark):
            for example in task.examples()[: task.harness().num_fewshot]:
                turns += [Message("user", example.prompt.text), Message("assistant", str(example.answer))]
            new = 0 if task.harness().metric == "acc" else new
        asked = [replace(q.prompt, context=(*q.prompt.context, *turns)) for q in self.run.evaluator.questions]
        if asked:
            writes = Count(len(asked) * new, new > 0)
            self._note(stage, [model], self._reading([model], asked, added=new), writes, seconds)

    def expand(self, pool: Sequence[Prompt], seen: Sequence[Prompt], index: int) -> Expansion:
        self.iteration = index
        stage: Any = self.run.stages.expand
        if isinstance(stage, Private):  # what it gives is there already
            return stage(pool, seen, index)
        models = [stage.writer.model] if isinstance(stage.writer, LocalWriter) else []  # it may be elsewhere
        requests = self._requests(stage, models, pool)
        found, seconds = self._look("expand", models, stage, pool, seen, index)
        writes = Count(stage.num_drafts * stage.max_new_tokens, True) if found is None else Count(found.tokens)
        self._note("expand", models, requests, writes, seconds)
        self.is_known = found is not None
        turns = max((seed.context for seed in self.run.seeds), key=lambda turns: sum(len(t.content) for t in turns))
        return found or Expansion(tuple(Prompt("", turns, index, (UNWRITTEN, str(n))) for n in range(stage.num_drafts)))

    def screen(self, prompts: Sequence[Prompt], seeds: Sequence[Prompt]) -> Screening:
        stage: Any = self.run.stages.screen
        if stage is ask_all:
            return ask_all(prompts, seeds)
        models = [stage.base, stage.teacher]
        found, seconds = self._look("screen", models, stage, prompts, seeds)
        self._note("screen", models, self._reading(models, [*seeds, *prompts]), Count(0), seconds)
        self.is_known = found is not None
        return found or ask_all(prompts, seeds)

    def answer(self, prompts: Sequence[Prompt]) -> Sequence[Response]:
        stage: Any = self.run.stages.answer
        if isinstance(stage, Gold):
            return stage(prompts)
        teacher, new = stage.teacher, stage.max_new_tokens
        found, seconds = self._look("answer", [teacher], stage, prompts)
        writes = Count(len(prompts) * new, True) if found is None else Count(sum(r.tokens for r in found))
        self._note("answer", [teacher], self._reading([teacher], prompts, added=new), writes, seconds)
        self.is_known = found is not None
        return found or [Response(prompt, UNWRITTEN, tokens=new) for prompt in prompts]

    def score(self, responses: Sequence[Response]) -> Sequence[Scored]:
        stage: Any = self.run.stages.score
        models = [model for model in (stage.base, stage.teacher, stage.target) if model is not None]
        found, seconds = self._look("score", models, stage, responses)
        if stage.judge is not None and found is None:
            self._discriminator(stage.judge)
        self._note("score", models, self._reading(models, responses), Count(0), seconds)
        self.is_known = found is not None
        return found or [Scored(response, math.nan, math.nan, response.tokens) for response in responses]

    def _discriminator(self, judge: TrainedJudge) -> None:
        """The synthetic prompts and the training of what tells them from private ones, once."""
        if any((work.stage, work.models) == ("train", "base") and work.iteration is not None for work in self.work):
            return
        expand: Any = judge.expand
        writes = Count(expand.num_drafts * expand.max_new_tokens, True)
        self._note("expand", [judge.base], self._requests(expand, [judge.base], judge.seeds), writes, None)
        ask = Judge(judge.base, judge.dataset).question
        asked = [Response(ask(prompt), YES) for prompt in judge.private]
        is_here = judge.base.weights in self.sizes
        longest = max(asked, key=lambda response: self._length(judge.base, response) if is_here else 0)
        texts = [longest] * 2 * max(len(asked), expand.num_drafts)  # one side is repeated up to the other
        items, reads, length = self._reading([judge.base], texts, judge.lora.epochs)
        most = Count(items.number, True), None if reads is None else Count(reads.number, True), length
        self._note("train", [judge.base], most, Count(0), None, judge.training)

    def select(self, scored: Sequence[Scored], of_seeds: Sequence[Scored]) -> Selection:
        return self.run.stages.select(scored, of_seeds) if self.is_known else Selection(tuple(scored), ())

    def train(self, corpus: Sequence[Scored], dropped: Sequence[Scored], index: int) -> Adapter:
        stage: Any = self.run.stages.train
        target = stage.target
        if not isinstance(stage, TrainLora):  # it takes what is there
            return Adapter("", target.name, 0, None)
        responses, others = [e.response for e in corpus], [e.response for e in dropped]
        models = [target] if stage.teacher is None else [target, stage.teacher]
        found, seconds = self._look("train", models, stage, *learnt(stage, corpus, dropped, index))
        # Where it is not known what is dropped, it is among what counts as kept.
        replayed = self._replayed(stage.replay, len(others) + (0 if self.is_known else len(responses)))
        writes = replayed if found is None else Count(found.generated_tokens)
        epoch = [example.response for example in stage.epoch(corpus)]
        self._note("train", models, self._reading([target], epoch, stage.lora.epochs), writes, seconds, stage)
        if found is not None:
            self.here.add(LanguageModel(target.weights, found.path))
        return found or Adapter("", target.name, len(corpus), math.nan)

    @property
    def has_all(self) -> bool:
        return all(model.weights in self.sizes for model in self.run.models.values())

    def _look(self, stage: str, models: Models, *content: Any) -> tuple[Any, Seconds]:
        """What the store holds and what it has cost, or twice ``None``."""
        can_look = self.is_known and self.here.issuperset(models)
        return (self.run.store.held(stage, *content) if can_look else None) or (None, None)

    def _replayed(self, replay: Replay, dropped: int) -> Count:
        """The most that is generated to be replayed; the target's free texts are written once."""
        trained = [w for w in self.work if w.stage == "train" and w.seconds is None and w.iteration is not None]
        is_written = any(w.writes.number for w in trained)
        texts = {"none": 0, "free": 0 if is_written else replay.num_texts, "dropped": dropped}[replay.source]
        return Count(texts * replay.max_new_tokens, texts > 0)

    def _note(
        self, stage: str, models: Models, reading: Reading, writes: Count, seconds: Seconds, training: Training = None
    ) -> None:
        (items, reads, longest), memory, roles = reading, None, self.run.models.items()
        if self.has_all:
            sizes, bound = [self.sizes[model.weights] for model in models], self.run.trainer.batch_tokens
            working = [size.to_read(items.number, longest, bound, writes.number > 0) for size in sizes]
            if training is not None:
                replay, step = training.replay, 2 * training.lora.batch_size  # half of a step may be replay
                texts, first = writes.number // replay.max_new_tokens, 1 if replay.source == "free" else longest
                again = sizes[0].to_read(texts, first + replay.max_new_tokens, bound, True)
                recomputes = training.lora.gradient_checkpointing
                working = [again, sizes[0].to_train(step, longest, bound // KEPT, recomputes)]
            memory = sum(size.weights for size in self.sizes.values()) + max(working, default=0)
        names = (next((role for role, each in roles if each == model), "target") for model in models)
        self.work.append(
            Work(self.iteration, stage, ", ".join(names) or "writer", items, reads, writes, memory, seconds)
        )

    def _reading(self, models: Models, texts: Sequence[Text], times: int = 1, added: int = 0) -> Reading:
        """How many texts, tokens in all if each of ``models`` reads them so often, and tokens of the longest."""
        prompts = [text if isinstance(text, Prompt) else text.prompt for text in texts]
        items = Count(len(texts), any(map(_is_unwritten, prompts)))
        if not all(model.weights in self.sizes for model in models):
            return items, None, 0
        lengths = [self._length(model, text) for model in models for text in texts]
        return items, Count(times * sum(lengths), any(map(_is_unwritten, texts))), max(lengths, default=0) + added

    def _requests(self, stage: Any, models: Models, pool: Sequence[Prompt]) -> Reading:
        """The same of the requests for new prompts, each as long as the longest that can be made of ``pool``."""
        new, drafts = stage.max_new_tokens, Count(stage.num_drafts, not self.is_known)
        if not models or models[0].weights not in self.sizes:
            return drafts, None, 0

        def length(shown: Sequence[Prompt]) -> int:
            return len(encode_prefix(models[0], stage.longest(shown))) + new * sum(map(_is_unwritten, shown))

        longest = length(sorted(pool, key=lambda prompt: length([prompt]))[-stage.drawn :])
        return drafts, Count(drafts.number * longest, True), longest + new

    def _length(self, model: LanguageModel, text: Text) -> int:
        """The tokens that ``model`` reads: a prompt before it answers, or a response after its prompt."""
        key = model.weights, text
        if key not in self.lengths:
            if isinstance(text, Response) and not _is_unwritten(text):
                self.lengths[key] = len(encode_response(model, text.prompt, text.text, text.finished).ids)
            elif isinstance(text, Response):
                self.lengths[key] = self._length(model, text.prompt) + text.tokens
            else:
                new = self.run.stages.expand.max_new_tokens if _is_unwritten(text) else 0  # type: ignore[attr-defined]
                self.lengths[key] = len(encode_prefix(model, model.template.prefix(text))) + new
        return self.lengths[key]


def plan(cfg: Mapping[str, Any]) -> Plan:
    """What the run of a resolved configuration will do. Raises ``TskdError`` where it cannot be run."""
    # A store that is not there yet would be made.
    run = build({**cfg, "store": cfg["store"] if Path(str(cfg["store"])).is_dir() else "off"}, Path())
    return plan_run(run)


def plan_run(run: Run) -> Plan:
    """What ``run`` will do. Raises ``TskdError`` where it cannot be run."""
    if (reason := unplannable(run)) is not None:
        raise ConfigError(f"{reason}; run this one without a plan.")
    made = Plan(run)
    is_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # or what is not here would be downloaded
    try:
        made.before()
        for iteration in tuneshift(
            run.seeds,
            made.stages(),
            iterations=run.iterations,
            stop=run.stop,
            train_each_iteration=run.train_each_iteration,
        ):
            if iteration.adapter is not None:
                made.evaluate(LanguageModel(run.target.weights, iteration.adapter.path))
    except NothingToLearn as error:
        made.end = str(error)
    finally:
        constants.HF_HUB_OFFLINE = is_offline
    return made


def unplannable(run: Run) -> str | None:
    """Why there can be no plan of ``run``, where a stage of it does not tell the most that it will do."""
    expand, answer = run.stages.expand, run.stages.answer
    if not isinstance(expand, Private) and not all(hasattr(expand, name) for name in BOUNDS):
        return f"A plan needs an `expansion` that has {', '.join(BOUNDS)}"
    if isinstance(answer, Gold) and not isinstance(expand, Private):
        return (
            "A plan cannot tell which of the prompts to come have an answer with `answer=gold`; `expansion=private` has"
        )
    if not isinstance(answer, Gold) and not hasattr(answer, "max_new_tokens"):
        return "A plan needs an `answer` that has teacher, max_new_tokens"
    return None


def _is_unwritten(text: Text) -> bool:
    return text.parents[:1] == (UNWRITTEN,) if isinstance(text, Prompt) else text.text == UNWRITTEN


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
