"""From a resolved configuration to the objects that it names, checked against each other. Loads no weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tskd import moved
from tskd.config import schema, trust
from tskd.config.hydra_plugins import shipped
from tskd.engines.engine import Engine, check_engine
from tskd.engines.own import OwnLoop
from tskd.errors import ConfigError, TskdError, merged
from tskd.evaluation.answer_metrics import Evaluator, ExactMatch
from tskd.evaluation.lm_harness import HarnessEvaluator
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import check_context, encode_prefix
from tskd.models.weights import LanguageModel, Weights, keep_only, weights_of
from tskd.modules.lora import LoraSettings, StepLog
from tskd.modules.measures import needed
from tskd.modules.resume import ResumableTrainer
from tskd.modules.trainer import LightningTrainer
from tskd.records import Iteration, Prompt, Question
from tskd.runtime import processes, secrets
from tskd.stages.coverage import Covered
from tskd.stages.discriminator import TrainedJudge
from tskd.stages.score import Score
from tskd.stages.select.stage import AUTO, MIN_SEEDS, ByTheSeeds, Select
from tskd.stages.teacher import Finetuned, check_base
from tskd.stages.train import Replay, TrainLora
from tskd.stages.writers import LocalWriter, Writer
from tskd.storage.fingerprint import OutputFolder
from tskd.storage.journal import Journal
from tskd.storage.result_cache import Store
from tskd.storage.run_folder import RunFolder
from tskd.tasks import Benchmark, Task, WithPrivate
from tskd.tracking.wandb import Wandb
from tskd.tuneshift import Stages, ask_all, never

Made = TypeVar("Made")
LENGTHS_AND_EPOCHS = ("prompt_tokens", "response_tokens", "epochs", "batch_size")  # for the stages, not for the task


@dataclass(frozen=True)
class Run:
    """All that one configuration stands for; nothing is loaded before it is used.

    ``base`` is what the teacher was tuned from and ``reference`` what it is scored against: the same, or a stand-in.
    ``teacher_to_make`` is set where the teacher is to be fine-tuned here first.
    """

    settings: schema.Schema
    base: LanguageModel
    reference: LanguageModel
    teacher: LanguageModel
    target: LanguageModel
    teacher_to_make: Finetuned | None
    task: Task
    seeds: Sequence[Prompt]
    stages: Stages
    iterations: int
    stop: Callable[[Sequence[Iteration]], bool]
    train_each_iteration: bool
    trainer: LightningTrainer
    engine: Engine
    evaluator: Evaluator
    tracking: Wandb
    store: Store

    @property
    def models(self) -> dict[str, LanguageModel]:
        """By the name of their place in the configuration; the writer of prompts where it is none of the others."""
        roles = {"base": self.base, "teacher": self.teacher, "target": self.target}
        if self.reference is not self.base:
            roles["base_for_scoring"] = self.reference
        writer = getattr(self.stages.expand, "writer", None)
        if isinstance(writer, LocalWriter) and writer.model not in roles.values():
            roles["writer"] = writer.model
        return roles

    def check_models(self) -> None:
        """Raise ``ModelError`` where one cannot be loaded, has no room, or the adapter does not belong to the base."""
        for check in self.checks():
            check()

    def checks(self) -> Iterator[Callable[[], Any]]:
        """What ``check_models`` does, one after another, so that all that is wrong can be gathered.

        The last ones are of lengths: what is known before the run must fit each model that reads it.
        """
        yield from (model.weights.check_loadable for model in self.models.values())
        for stage in (self.stages.screen, self.stages.score, self.stages.train):
            if (check := getattr(stage, "check_models", None)) is not None:
                yield check
        made: list[Any] = [] if self.teacher_to_make is None else [self.teacher_to_make]
        models = [model for role, model in self.models.items() if role != "teacher" or not made]
        ranks = [each.lora.rank for each in (self.stages.train, *made) if hasattr(each, "lora")]
        yield partial(check_engine, self.engine, models, max(ranks, default=1))
        yield self.check_adapter
        readers = {model.weights: model for model in (self.base, self.reference, self.teacher, self.target)}
        yield from (partial(self._check_seeds, model) for model in readers.values())
        if (check := getattr(self.stages.expand, "check_lengths", None)) is not None:
            yield partial(check, self.seeds)
        yield from (partial(self.evaluator.check_lengths, model) for model in (self.base, self.teacher, self.target))

    def advice(self) -> list[str]:
        """What would make the run faster on this machine; asked when the models are known to be here."""
        emulated = {
            role: dtype
            for role, model in self.models.items()
            if not (role == "teacher" and model.weights is self.base.weights)
            and (dtype := model.weights.emulated_on(self.trainer.device)) is not None
        }
        if not emulated:
            return []
        places = {"writer": "expansion.writer"}
        faster = " ".join(f"{places.get(role, role)}.checkpoint.dtype=float32" for role in emulated)
        return [
            f"This CPU has no instructions for {' and '.join(sorted(set(emulated.values())))}, which takes several "
            f"times as long as float32; `{faster}` is faster, in twice the memory."
        ]

    def check_adapter(self) -> None:
        """Raise ``ModelError`` where the teacher's adapter is there and does not belong to the base."""
        if self.teacher.adapter is not None and self.teacher_to_make is None:
            same_base = bool(self.settings.teacher.get("same_base", True))
            self.base.weights.check_adapter(self.teacher.adapter, same_base)
            check_base(self.teacher.adapter, self.base.weights)

    def _check_seeds(self, model: LanguageModel) -> None:
        room = self.settings.task["response_tokens"]
        longest = max(len(encode_prefix(model, model.template.prefix(seed))) for seed in self.seeds)
        check_context(model, longest + room, f"The longest seed, with a response of {room} tokens,")


@dataclass(frozen=True)
class Attempt:
    """A run built as far as its configuration is right, the rest of it as it is shipped.

    ``wrong`` names the settings at the root that are as shipped, because of ``errors`` or as it was told.
    """

    run: Run
    errors: Sequence[TskdError]
    wrong: frozenset[str]


def build(cfg: Mapping[str, Any], folder: Path, log_step: StepLog | None = None) -> Run:
    """Build the objects of one run that writes into ``folder``.

    Raises:
        TskdError: A line for each problem with ``cfg``; its class is that of the first.
    """
    made = attempt(cfg, folder, log_step)
    if made.errors:
        raise merged(made.errors)
    keep_only([model.weights for model in made.run.models.values()])  # of the job before
    return made.run


def attempt(
    cfg: Mapping[str, Any], folder: Path, log_step: StepLog | None = None, wrong: Iterable[str] = ()
) -> Attempt:
    """Build a run, and go on after an error. ``wrong`` names settings that are known to be wrong."""
    builder = _Builder(cfg, folder, log_step, wrong)
    return Attempt(builder.run(), builder.errors, frozenset(builder.wrong))


class _Builder:
    """Build a run part by part. A part with an error is built again, of the settings that are shipped."""

    def __init__(self, cfg: Mapping[str, Any], folder: Path, log_step: StepLog | None, wrong: Iterable[str]) -> None:
        self.folder, self.log_step, self.errors = folder, log_step, list[TskdError]()
        problems = schema.Schema.problems({**shipped(), **cfg} if wrong else cfg)
        self.errors += [ConfigError(*lines) for lines in problems.values()]
        known = {field.name for field in fields(schema.Schema)}
        self.wrong = known & {*wrong, *problems}
        right = {name: value for name, value in cfg.items() if name in known - self.wrong}
        self.settings = schema.Schema.of(right | {name: shipped()[name] for name in self.wrong})
        try:
            secrets.check_no_key(str(cfg))
        except ConfigError as error:
            self.errors.append(error)

    def part(self, make: Callable[[], Made], *names: str) -> Made:
        """Return what ``make`` returns, which reads the settings ``names``."""
        if not self.wrong.intersection(names):
            try:
                trust.check({name: getattr(self.settings, name) for name in names}, self.settings.allow)
                return make()
            except TskdError as error:
                self.errors.append(error)
        self.ship(*names)
        return make()

    def ship(self, *names: str) -> None:
        self.wrong.update(names)
        self.settings = replace(self.settings, **{name: shipped()[name] for name in names})

    def run(self) -> Run:
        self.part(tuple, "allow")
        covered = self.part(lambda: schema.make(Covered, self.settings.stop, "stop"), "stop")
        tracking = self.part(lambda: schema.make(Wandb, self.settings.tracking, "tracking"), "tracking")
        self.trainer, self.engine = self.part(self._trainer_and_engine, "trainer", "engine")
        self.sharded = self.trainer.sharded and processes.count() > 1
        self.base = self.part(lambda: self._model("base"), "base")
        self.reference = self.part(
            lambda: self.base if self.settings.base_for_scoring is None else self._model("base_for_scoring"),
            "base_for_scoring",
        )
        self.target = self.part(lambda: self._model("target"), "target")
        self.task, self.seeds, evaluator = self.part(self._task, "task")
        if "task" in self.wrong and "lora" in self.settings.teacher:
            self.ship("teacher")  # it is made on the task
        self.teacher, to_make = self.part(self._teacher, "teacher")
        self.expand = self.part(lambda: self._expand(evaluator.questions), "expansion")
        answer = self.part(self._answer, "answer")
        self.lora, self.objective, train = self.part(self._train, "training")
        score, select, screen = self.part(self._selection, "threshold", "selection")
        settings = self.settings
        is_auto, has_store = settings.iterations == AUTO, settings.store not in (None, False, "off") and not self.errors
        return Run(
            settings=settings,
            base=self.base,
            reference=self.reference,
            teacher=self.teacher,
            target=self.target,
            teacher_to_make=to_make,
            task=self.task,
            seeds=self.seeds,
            stages=Stages(self.expand, answer, score, select, train, screen),
            iterations=covered.max_iterations if is_auto else settings.iterations,
            stop=covered if is_auto else never,
            train_each_iteration=settings.training["each_iteration"],
            trainer=self.trainer,
            engine=self.engine,
            evaluator=evaluator,
            tracking=tracking,
            store=Store(Path(settings.store) if has_store else None, settings.store_limit_gb),
        )

    @property
    def models(self) -> dict[str, LanguageModel]:
        return {"base": self.base, "teacher": self.teacher, "target": self.target}

    def _trainer_and_engine(self) -> tuple[LightningTrainer, Engine]:
        trainer = make_trainer(self.settings.trainer, RunFolder(self.folder).journal)
        return trainer, make_engine(self.settings.engine, trainer)

    def _model(self, role: str) -> LanguageModel:
        return LanguageModel(self._weights(getattr(self.settings, role), role))

    def _weights(self, node: Mapping[str, Any], where: str) -> Weights:
        made = schema.make(Checkpoint, node["checkpoint"], f"{where}.checkpoint", sharded=self.sharded)
        return weights_of(made)

    def _task(self) -> tuple[Task, Sequence[Prompt], Evaluator]:
        """The task, its seeds, and the evaluator: the field's own harness for a public benchmark, or exact match."""
        task, read, errors = make_task(self.settings.task), list[Any](), list[TskdError]()
        for each in (task.seed_prompts, task.questions, *([task.examples] if isinstance(task, WithPrivate) else [])):
            try:
                read.append(each())
            except TskdError as error:
                errors.append(error)
        if errors:
            raise merged(errors)
        kind = HarnessEvaluator if isinstance(task, Benchmark) else ExactMatch
        length = self.settings.task["response_tokens"]
        return task, read[0], kind(task, read[1], self.trainer, length, self.engine)  # type: ignore[arg-type]

    def _teacher(self) -> tuple[LanguageModel, Finetuned | None]:
        """The teacher, and how to make it if it is one that is made here and has not been made yet.

        ``adapter``: the base with that adapter. ``checkpoint``: a fully fine-tuned model of its own. ``lora``: the
        base, fine-tuned on the task's private split.
        """
        node, base, task = self.settings.teacher, self.base.weights, self.task
        if "checkpoint" in node:
            return self._model("teacher"), None
        if "lora" not in node:
            return LanguageModel(base, str(node["adapter"])), None
        if not isinstance(task, Benchmark):
            raise ConfigError(
                f"`teacher=finetuned` needs a task with a private split, and {type(task).__name__} has none; choose a "
                f"benchmark (`task=bbh`, gsm8k, mbpp or mmlu), or give an adapter with `teacher=adapter "
                f"teacher.adapter=`."
            )
        recipe = schema.make(Finetuned, node, "teacher")
        folder = recipe.folder_for(base.checkpoint, task)
        return LanguageModel(base, str(folder)), None if recipe.is_made(folder) else recipe

    def _expand(self, questions: Sequence[Question]) -> Any:
        node = dict(self.settings.expansion)
        writer = self._writer(node.pop("writer", "base"))
        held_out = frozenset(q.prompt.fingerprint for q in questions) if self.task.drops_held_out else frozenset()
        return _given(node, "expansion", self.task, writer=writer, seed=self.settings.seed, held_out=held_out)

    def _writer(self, node: Any) -> Writer:
        """Who writes new prompts: the model of a role, another checkpoint, or what a ``_target_`` names."""
        if isinstance(node, Mapping) and "_target_" in node:
            writer: Writer = _make(node, "expansion.writer")
            return writer
        if isinstance(node, Mapping) and "checkpoint" in node:
            model = LanguageModel(self._weights(node, "expansion.writer"))
        elif isinstance(node, str) and node in self.models:
            model = self.models[node]
        else:
            raise ConfigError(
                f"`expansion.writer` is {node!r}; use one of {', '.join(self.models)}, or choose another model with "
                f"`model@expansion.writer.checkpoint=`."
            )
        return LocalWriter(model, self.trainer, self.engine)

    def _answer(self) -> Any:
        return _given(
            self.settings.answer or {"_target_": "tskd.stages.answer.Answer"},
            *("answer", self.task),
            teacher=self.teacher,
            trainer=self.trainer,
            engine=self.engine,
            seed=self.settings.seed,
            max_new_tokens=self.settings.task["response_tokens"],
        )

    def _train(self) -> tuple[LoraSettings, Any, Any]:
        """LoRA training, or what the node names in its place: all else that is set there is then without effect."""
        node = self.settings.training
        lora, objective = schema.make(LoraSettings, node["lora"], "training.lora"), _objective(node.get("objective"))
        train: Any = schema.make(
            TrainLora,
            {name: node[name] for name in ("min_examples", "fill_epoch_to", "not_finite") if name in node},
            "training",
            target=self.target,
            trainer=self.trainer,
            engine=self.engine,
            folder=self.folder,
            seed=self.settings.seed,
            lora=lora,
            replay=schema.make(Replay, node["replay"], "training.replay"),
            log_step=self.log_step,
            objective=objective,
            # Without the teacher if only its texts are learnt: teachers that say the same then share adapters.
            teacher=None if objective is None else self.teacher,
        )
        self._score(lora, getattr(objective, "measures", ()))
        if "_target_" in node:
            folder = OutputFolder(self.folder)
            train = _given({"_target_": node["_target_"]}, "training", self.task, **self.models, folder=folder)
        return lora, objective, train

    def _selection(self) -> tuple[Score, Select, Any]:
        node = dict(self.settings.selection)
        screen = node.pop("screen", None)
        rule: Any = _make(node, "selection")
        _check_threshold(self.settings.threshold, rule, len(self.seeds))
        score = self._score(self.lora, (*getattr(rule, "measures", ()), *getattr(self.objective, "measures", ())))
        models = {"base": self.reference, "teacher": self.teacher, "trainer": self.trainer}
        made = ask_all if screen is None else _make(screen, "selection.screen", **models)
        return score, Select(rule, tuple(self.settings.drop)), made

    def _score(self, lora: LoraSettings, measures: Iterable[str]) -> Score:
        names = tuple(dict.fromkeys(measures))
        needs = needed(names)
        return Score(
            self.reference,
            self.teacher,
            self.trainer,
            names,
            # Without the target if nothing is measured on it: runs on other targets then share the scores.
            self.target if "target" in needs else None,
            self.seeds if "seeds" in needs else (),
            self._judge(lora) if "judge" in needs else None,
        )

    def _judge(self, lora: LoraSettings) -> TrainedJudge:
        of_task = _with_private(self.task, "A discriminator learns from")
        private = [question.prompt for question in of_task.examples()]
        if not hasattr(self.expand, "writer"):
            raise ConfigError(
                f"A discriminator learns from synthetic prompts too, and {type(self.expand).__name__} writes none; "
                f"choose another `expansion`, or another `selection`."
            )
        writer = LocalWriter(self.base, self.trainer, self.engine)  # the source model, as in Trans-LoRA
        told = (self.base, self.trainer, self.folder, self.settings.seed, lora, replace(self.expand, writer=writer))
        return TrainedJudge(*told, self.seeds, private, of_task.label)


def _check_threshold(threshold: float | str, rule: Any, num_seeds: int) -> None:
    if getattr(rule, "threshold", threshold) != threshold:
        raise ConfigError(
            f"`selection.threshold` is {rule.threshold} and `threshold` is {threshold}; set `threshold` alone."
        )
    if threshold != AUTO:
        return
    if not isinstance(rule, ByTheSeeds):
        raise ConfigError(
            f"`threshold` is auto, and {type(rule).__name__} has none that the seeds could tell; choose a rule that "
            f"has, like `selection=ppl_difference`, or leave `threshold` at a number."
        )
    if num_seeds < MIN_SEEDS:
        raise ConfigError(
            f"`threshold` is auto, which the seeds tell, and there are {num_seeds}; give at least {MIN_SEEDS}, or a "
            f"number for `threshold`."
        )


def make_trainer(node: Mapping[str, Any], journal: Path | None = None) -> LightningTrainer:
    """Make the trainer, which keeps in the folder ``journal`` how far it is; without one, nowhere."""
    if journal is None:
        return schema.make(LightningTrainer, node, "trainer")
    return schema.make(ResumableTrainer, node, "trainer", journal=Journal(journal))


def make_engine(node: Mapping[str, Any] | None, trainer: LightningTrainer) -> Engine:
    """Make the engine: our own loop, if ``node`` names none. Raises ``ConfigError`` if ``trainer`` rules it out."""
    engine: Engine = OwnLoop() if node is None else _make(node, "engine")
    if trainer.sharded and not isinstance(engine, OwnLoop):
        raise ConfigError(
            f"`trainer=fsdp` shares out each layer over the processes, and {type(engine).__name__} generates in one of "
            f"them; set `engine=own`."
        )
    return engine


def make_task(node: Mapping[str, Any]) -> Task:
    task: Task = _make({key: value for key, value in node.items() if key not in LENGTHS_AND_EPOCHS}, "task")
    return task


def _with_private(task: Task, what: str) -> WithPrivate:
    """``task``. Raises ``ConfigError``, which begins with ``what`` needs it, where it has no private data."""
    if not isinstance(task, WithPrivate) or not task.examples():
        raise ConfigError(
            f"{what} the teacher's private data, and {type(task).__name__} has none; name its file (`task=files "
            f"task.private=`), choose a benchmark (`task=bbh`, gsm8k, mbpp or mmlu), or what needs no private data, "
            f"like `selection=ppl_difference`."
        )
    return task


def _objective(node: Any) -> Any:
    if node is not None and not isinstance(node, Mapping):
        raise ConfigError(
            f"`training.objective` is {node!r}; name a class, `{{_target_: my_file.MyObjective}}`, or null."
        )
    return None if node is None else _make(node, "training.objective")


def _make(node: Mapping[str, Any], where: str, **given: Any) -> Any:
    """What ``node`` names by its ``_target_``, and likewise what is named within it."""
    settings = {
        key: _make(value, f"{where}.{key}") if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in node.items()
        if key != "_target_"
    }
    return schema.make(_class(node, where), settings, where, **given)


def _given(node: Mapping[str, Any], where: str, task: Task, **offered: Any) -> Any:
    """What ``node`` names, with what of ``offered`` it has a place for, and the private split where it has one."""
    kind = _class(node, where)
    places = {field.name for field in fields(kind)} if is_dataclass(kind) else offered.keys()
    given = {name: value for name, value in offered.items() if name in places}
    if "private" in places:
        given["private"] = _with_private(task, f"`{where}`, which is {kind.__name__}, reads").examples()
    return _make(node, where, **given)


def _class(node: Mapping[str, Any], where: str) -> type[Any]:
    try:
        found = moved.find(str(node.get("_target_")))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`{where}._target_` is {node.get('_target_')!r}, which names no class: {error}.") from error
    return found  # type: ignore[no-any-return]
