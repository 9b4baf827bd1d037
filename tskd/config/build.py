"""From a resolved configuration to the objects that it names, checked against each other. Loads no weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tskd import moved
from tskd.config import schema, trust
from tskd.engines.engine import Engine, check_engine
from tskd.engines.own import OwnLoop
from tskd.errors import ConfigError
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


def build(cfg: Mapping[str, Any], folder: Path, log_step: StepLog | None = None) -> Run:
    """The objects of one run that writes into ``folder``. Raises ``TskdError`` where something cannot be."""
    settings = schema.Schema.of(cfg)
    trust.check(cfg, settings.allow)
    secrets.check_no_key(str(cfg))
    trainer = make_trainer(settings.trainer, RunFolder(folder).journal)
    engine = make_engine(settings.engine, trainer)
    task = make_task(settings.task)
    seeds, questions = task.seed_prompts(), task.questions()

    sharded = trainer.sharded and processes.count() > 1
    base = LanguageModel(_weights(settings.base, "base", sharded))
    teacher, to_make = _teacher(settings.teacher, base.weights, task)
    reference = base
    if settings.base_for_scoring is not None:
        reference = LanguageModel(_weights(settings.base_for_scoring, "base_for_scoring", sharded))
    target = LanguageModel(_weights(settings.target, "target", sharded))

    cast = _Cast(base, reference, teacher, target, trainer, engine, task, seeds, folder, settings.seed)
    held_out = frozenset(q.prompt.fingerprint for q in questions) if task.drops_held_out else frozenset()
    stages = _stages(settings, cast, held_out, log_step)
    covered = schema.make(Covered, settings.stop, "stop")
    is_auto = settings.iterations == AUTO
    run = Run(
        settings=settings,
        base=base,
        reference=reference,
        teacher=teacher,
        target=target,
        teacher_to_make=to_make,
        task=task,
        seeds=seeds,
        stages=stages,
        iterations=covered.max_iterations if is_auto else settings.iterations,
        stop=covered if is_auto else never,
        train_each_iteration=bool(settings.training["each_iteration"]),
        trainer=trainer,
        engine=engine,
        evaluator=_evaluator(task, questions, trainer, settings.task["response_tokens"], engine),
        tracking=schema.make(Wandb, settings.tracking, "tracking"),
        store=Store(
            None if settings.store in (None, False, "off") else Path(str(settings.store)), settings.store_limit_gb
        ),
    )
    keep_only([model.weights for model in run.models.values()])  # of the job before
    return run


@dataclass(frozen=True)
class _Cast:
    """Who takes part in a run, on what, and where it writes: what its stages are made of."""

    base: LanguageModel
    reference: LanguageModel
    teacher: LanguageModel
    target: LanguageModel
    trainer: LightningTrainer
    engine: Engine
    task: Task
    seeds: Sequence[Prompt]
    folder: Path
    seed: int


def _stages(settings: schema.Schema, cast: _Cast, held_out: frozenset[str], log_step: StepLog | None) -> Stages:
    expand = _expand(settings.expansion, cast, held_out)
    selection = dict(settings.selection)
    screen = selection.pop("screen", None)
    rule: Any = _make(selection, "selection")
    _check_threshold(settings.threshold, rule, len(cast.seeds))
    objective = _objective(settings.training.get("objective"))
    measures = tuple(dict.fromkeys((*getattr(rule, "measures", ()), *getattr(objective, "measures", ()))))
    needs = needed(measures)
    lora = schema.make(LoraSettings, settings.training["lora"], "training.lora")
    train = _train(settings.training, cast, lora, objective, log_step)
    return Stages(
        expand=expand,
        answer=_given(
            settings.answer or {"_target_": "tskd.stages.answer.Answer"},
            *("answer", cast.task),
            teacher=cast.teacher,
            trainer=cast.trainer,
            engine=cast.engine,
            seed=cast.seed,
            max_new_tokens=settings.task["response_tokens"],
        ),
        score=Score(
            cast.reference,
            cast.teacher,
            cast.trainer,
            measures,
            # Without the target where none of it is measured: its scores are then shared by runs on other targets.
            cast.target if "target" in needs else None,
            cast.seeds if "seeds" in needs else (),
            _judge(cast, expand, lora) if "judge" in needs else None,
        ),
        select=Select(rule, tuple(settings.drop)),
        train=train,
        screen=ask_all
        if screen is None
        else _make(screen, "selection.screen", base=cast.reference, teacher=cast.teacher, trainer=cast.trainer),
    )


def _expand(node: Mapping[str, Any], cast: _Cast, held_out: frozenset[str]) -> Any:
    roles = {"base": cast.base, "teacher": cast.teacher, "target": cast.target}
    writer = _writer(node.get("writer", "base"), roles, cast)
    rest = {key: value for key, value in node.items() if key != "writer"}
    return _given(rest, "expansion", cast.task, writer=writer, seed=cast.seed, held_out=held_out)


def _train(node: Mapping[str, Any], cast: _Cast, lora: LoraSettings, objective: Any, log_step: StepLog | None) -> Any:
    """LoRA training, or what the node names in its place: all else that is set there is then without effect."""
    made = schema.make(
        TrainLora,
        {name: node[name] for name in ("min_examples", "fill_epoch_to", "not_finite") if name in node},
        "training",
        target=cast.target,
        trainer=cast.trainer,
        engine=cast.engine,
        folder=cast.folder,
        seed=cast.seed,
        lora=lora,
        replay=schema.make(Replay, node["replay"], "training.replay"),
        log_step=log_step,
        objective=objective,
        # Without the teacher where only its texts are learnt: adapters are then shared by teachers that say the same.
        teacher=None if objective is None else cast.teacher,
    )
    if "_target_" not in node:
        return made
    models = {"base": cast.base, "teacher": cast.teacher, "target": cast.target}
    return _given({"_target_": node["_target_"]}, "training", cast.task, **models, folder=OutputFolder(cast.folder))


def _judge(cast: _Cast, expand: Any, lora: LoraSettings) -> TrainedJudge:
    of_task = _with_private(cast.task, "A discriminator learns from")
    private = [question.prompt for question in of_task.examples()]
    if not hasattr(expand, "writer"):
        raise ConfigError(
            f"A discriminator learns from synthetic prompts too, and {type(expand).__name__} writes none; choose "
            f"another `expansion`, or another `selection`."
        )
    writer = LocalWriter(cast.base, cast.trainer, cast.engine)  # the source model, as in Trans-LoRA
    synthesise = replace(expand, writer=writer)
    told = (cast.base, cast.trainer, cast.folder, cast.seed, lora, synthesise, cast.seeds, private)
    return TrainedJudge(*told, of_task.label)


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


def _evaluator(
    task: Task, questions: Sequence[Question], trainer: LightningTrainer, max_new_tokens: int, engine: Engine
) -> Evaluator:
    """The field's own harness for a public benchmark, exact match for anything else."""
    if isinstance(task, Benchmark):
        return HarnessEvaluator(task, questions, trainer, max_new_tokens, engine)
    return ExactMatch(task, questions, trainer, max_new_tokens, engine)


def _weights(node: Mapping[str, Any], where: str, sharded: bool) -> Weights:
    return weights_of(schema.make(Checkpoint, node["checkpoint"], f"{where}.checkpoint", sharded=sharded))


def _teacher(node: Mapping[str, Any], base: Weights, task: Task) -> tuple[LanguageModel, Finetuned | None]:
    """The teacher, and how to make it where it is one that is made here and has not been made yet.

    ``adapter``: the base with that adapter. ``checkpoint``: a fully fine-tuned model of its own. ``lora``: the base,
    fine-tuned on the task's private split.
    """
    if "checkpoint" in node:
        return LanguageModel(_weights(node, "teacher", base.checkpoint.sharded)), None
    if "lora" not in node:
        return LanguageModel(base, str(node["adapter"])), None
    if not isinstance(task, Benchmark):
        raise ConfigError(
            f"`teacher=finetuned` needs a task with a private split, and {type(task).__name__} has none; choose a "
            f"benchmark (`task=bbh`, gsm8k, mbpp or mmlu), or give an adapter with `teacher=adapter teacher.adapter=`."
        )
    recipe = schema.make(Finetuned, node, "teacher")
    folder = recipe.folder_for(base.checkpoint, task)
    return LanguageModel(base, str(folder)), None if recipe.is_made(folder) else recipe


def _writer(node: Any, roles: Mapping[str, LanguageModel], cast: _Cast) -> Writer:
    """Who writes new prompts: the model of a role, another checkpoint, or what a ``_target_`` names."""
    if isinstance(node, Mapping) and "_target_" in node:
        writer: Writer = _make(node, "expansion.writer")
        return writer
    if isinstance(node, Mapping) and "checkpoint" in node:
        model = LanguageModel(_weights(node, "expansion.writer", cast.base.weights.checkpoint.sharded))
        return LocalWriter(model, cast.trainer, cast.engine)
    if not isinstance(node, str) or node not in roles:
        raise ConfigError(
            f"`expansion.writer` is {node!r}; use one of {', '.join(roles)}, or choose another model with "
            f"`model@expansion.writer.checkpoint=`."
        )
    return LocalWriter(roles[node], cast.trainer, cast.engine)


def _make(node: Mapping[str, Any], where: str, **given: Any) -> Any:
    """What ``node`` names by its ``_target_``, and likewise what is named within it."""
    settings = {
        key: _make(value, f"{where}.{key}") if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in node.items()
        if key != "_target_"
    }
    return schema.make(_class(node), settings, where, **given)


def _given(node: Mapping[str, Any], where: str, task: Task, **offered: Any) -> Any:
    """What ``node`` names, with what of ``offered`` it has a place for, and the private split where it has one."""
    kind = _class(node)
    places = {field.name for field in fields(kind)} if is_dataclass(kind) else offered.keys()
    given = {name: value for name, value in offered.items() if name in places}
    if "private" in places:
        given["private"] = _with_private(task, f"`{where}`, which is {kind.__name__}, reads").examples()
    return _make(node, where, **given)


def _class(node: Mapping[str, Any]) -> type[Any]:
    try:
        found = moved.find(str(node.get("_target_")))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"`_target_` is {node.get('_target_')!r}, which names no class: {error}.") from error
    return found  # type: ignore[no-any-return]
