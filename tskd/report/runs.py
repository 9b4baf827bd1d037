"""Runs, read from their folders alone, and put together by what they were asked and by what is set in them."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tskd.config import saved
from tskd.errors import RunFolderError
from tskd.records import PRIVATE, VOICES, Graded, Scored
from tskd.storage import atomic_files, run_folder

Settings = Mapping[str, Any]
SEED, SUBSET = "seed", "task.subset"
# Where things are, and how they are computed, shown and graded safely: nothing here is meant to change a number.
INDIFFERENT = {
    *("selection.threshold", "selection.like.threshold"),  # the root's
    *("name", "store", "store_limit_gb", "allow", "private_files", "max_hours"),
    *("teacher.folder", "task.root", "task.allow_code_execution", "task.unsandboxed"),
    *(f"tracking.{key}" for key in ("mode", "project", "entity", "log_text", "log_adapter", "timeout")),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "max_batch_tokens", "keep_models", "progress")),
    *(f"{model}.checkpoint.{key}" for model in ("base", "target") for key in ("attention", "device_map")),
}


@dataclass(frozen=True)
class FoundRun:
    """A run as its folder has it, finished or not: its settings by dotted name, its result, how it ended.

    Its records are read when they are asked for.
    """

    folder: Path
    settings: Settings
    result: Mapping[str, Any]
    status: str
    error: str = ""

    @property
    def subset(self) -> str:
        return str(self.settings.get(SUBSET, ""))

    @property
    def seed(self) -> int:
        return int(self.settings[SEED])

    @property
    def job(self) -> tuple[float | str, int, str]:
        return self.settings["threshold"], self.settings[SEED], self.subset

    @cached_property
    def overrides(self) -> dict[str, str]:
        """What was given on the command line, by name; nothing where a run was not made by it."""
        file = self.folder / ".hydra" / "overrides.yaml"
        given = [str(each) for each in OmegaConf.load(file)] if file.is_file() else []
        return {name.lstrip("+"): value for name, _, value in (each.partition("=") for each in given)}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of each iteration."""
        return run_folder.RunFolder(self.folder).rows()

    @cached_property
    def graded(self) -> dict[str, list[Graded]]:
        """Each voice's answers to the held-out questions: none where there were no questions."""
        names = run_folder.graded_as(f"iteration_{self._last_trained}")
        paths = {voice: self.folder / "evaluation" / f"{name}.jsonl" for voice, name in names.items()}
        return {voice: atomic_files.read_lines(Graded, path) for voice, path in paths.items() if path.is_file()}

    @cached_property
    def kept(self) -> list[Scored]:
        return self._of_iterations("kept.jsonl")

    @cached_property
    def dropped(self) -> list[Scored]:
        return self._of_iterations("dropped.jsonl")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return _read(self.folder / "provenance.json")

    @cached_property
    def repeats(self) -> dict[str, float]:
        """The shares of prompts and responses with 8 words in a row of given text, where `tskd.audit` was run."""
        kinds = _read(self.folder / "audit.json")
        return {
            f"audit/{kind}": max(found["with_8_words"] / max(1, found["texts"]) for found in against.values())
            for kind, against in kinds.items()
        }

    @cached_property
    def evalplus(self) -> dict[str, Any]:
        """What EvalPlus said of it, where it was asked."""
        return _read(self.folder / "evalplus" / "result.json")

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """What it was asked, by split and question, in the order in which every voice has answered."""
        return tuple((answer.split, answer.question) for answer in self.graded.get("teacher", ()))

    def check(self) -> None:
        """Read everything. Raises ``RunFolderError``, with the file's name, where a file is damaged or missing."""
        if not self.result:
            raise RunFolderError(f"There is no {self.folder / 'result.json'}, although the run is said to be completed")
        if not self.rows:
            raise RunFolderError(f"There is no row in {self.folder / 'metrics.jsonl'}")
        for index in range(len(self.rows)):
            for name in ("kept.jsonl", "dropped.jsonl"):
                if not (file := self.folder / f"iteration_{index}" / name).is_file():
                    raise RunFolderError(f"There is no {file}")
        asked = {voice: [answer.question for answer in graded] for voice, graded in self.graded.items()}
        if asked and (missing := [voice for voice in VOICES if voice not in asked]):
            raise RunFolderError(f"The answers of {', '.join(missing)} are not in {self.folder / 'evaluation'}")
        if len(set(map(tuple, asked.values()))) > 1:
            raise RunFolderError(f"The files in {self.folder / 'evaluation'} do not answer the same questions")
        _ = self.kept, self.dropped, self.overrides, self.provenance

    @property
    def _last_trained(self) -> int:
        trained = [int(file.parent.name.removeprefix("iteration_")) for file in self.folder.glob("*/adapter.json")]
        return max(trained, default=len(self.rows) - 1)

    def _of_iterations(self, name: str) -> list[Scored]:
        files = [self.folder / f"iteration_{index}" / name for index in range(len(self.rows))]
        return [example for file in files for example in atomic_files.read_lines(Scored, file)]


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, in the order of their seeds; ``label`` is what sets them apart."""

    label: str
    settings: Settings
    runs: tuple[FoundRun, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def threshold(self) -> float | None:
        """``None`` where each run has another, told by its seeds."""
        value = self.settings.get("threshold")
        return float(value) if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class Study:
    """Arms that were asked the same held-out questions, and can be compared for it."""

    name: str
    arms: tuple[Arm, ...]

    @property
    def num_questions(self) -> int:
        """The private ones."""
        return sum(split == PRIVATE for split, _ in self.arms[0].runs[0].questions)


@dataclass(frozen=True)
class Collected:
    """``left_out`` says of each run that does not count why, and of each that counts what is odd about it."""

    studies: tuple[Study, ...]
    left_out: tuple[str, ...]


def runs_in(folder: Path) -> Iterator[FoundRun]:
    """All runs in a folder and below. Raises ``RunFolderError`` where there is none, or a file is damaged."""
    yield from map(_run, _folders(folder))


def one(folder: Path) -> FoundRun:
    """The run in this very folder. Raises ``RunFolderError`` where it is not whole, or not completed."""
    if not (file := folder / "config.yaml").is_file():
        raise RunFolderError(f"There is no run in {folder}: it has no {file.name}.")
    run = _run(folder)
    if run.status != "completed":
        raise RunFolderError(f"The run in {folder} is {run.status}. Go on with `python -m tskd.run resume={folder}`.")
    run.check()
    return run


def collect(folders: Sequence[Path]) -> Collected:
    """The completed runs in these folders and below. Raises ``RunFolderError`` where there is none."""
    said: list[str] = []
    whole: list[FoundRun] = []
    for each in dict.fromkeys(found.resolve() for folder in folders for found in _folders(folder)):
        try:
            run = _run(each)
            if run.status != "completed":
                said.append(f"{run.folder} is {run.status}" + (f": {run.error}" * bool(run.error)) + ".")
                continue
            run.check()
        except RunFolderError as error:
            said.append(f"{each} is damaged. {str(error).rstrip('.')}.")
            continue
        whole.append(run)
    if not whole:
        raise RunFolderError(f"None of the {len(said)} runs there is complete. " + " ".join(said))
    by_questions: dict[Any, list[FoundRun]] = defaultdict(list)
    for run in whole:
        by_questions[run.settings["task._target_"], run.questions or run.subset].append(run)
    if len(by_questions) > 1:
        said.append(
            f"The runs were asked {len(by_questions)} different sets of held-out questions; "
            "each has tables of its own. Nothing is averaged or compared across them but subsets of one benchmark, "
            "where several were run alone."
        )
    studies = [
        Study(" ".join(filter(None, [task_name(runs[0]), runs[0].subset])), _arms(_of_one_version(runs, said), said))
        for runs in by_questions.values()
    ]
    studies.sort(key=lambda study: study.name)
    names = names_apart([study.name for study in studies])
    return Collected(tuple(replace(study, name=name) for study, name in zip(studies, names, strict=True)), tuple(said))


def flat(node: Any) -> Settings:
    """Resolved values by dotted name; lists are values."""

    def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            yield name, value
            return
        for key, each in value.items():
            yield from leaves(each, f"{name}.{key}" if name else str(key))

    return dict(leaves(OmegaConf.to_container(node, resolve=True), ""))


def _folders(folder: Path) -> list[Path]:
    """Those of runs, in and below a folder: of jobs that ended before they had a configuration, too."""
    found = []
    for file in sorted(folder.rglob("config.yaml")):  # Hydra's own and W&B's have the same name
        if file.parent.name == ".hydra":
            job = file.parents[1]
            if not (job / "config.yaml").is_file() and _read(job / "status.json").get("status") != "completed":
                found.append(job)  # a job that made a teacher has none either, and is no run
        elif "wandb" not in file.parts[-4:]:
            found.append(file.parent)
    if not found:
        raise RunFolderError(f"There is no run in {folder}; give folders of runs or sweeps.")
    return found


def _run(folder: Path) -> FoundRun:
    settings = flat(saved.of_run(folder)) if (folder / "config.yaml").is_file() else {}
    result, status = (_read(folder / name) for name in ("result.json", "status.json"))
    said = str(status.get("error", "")).rstrip(".")
    return FoundRun(folder, settings, result, status.get("status", "unfinished"), said)


def _read(file: Path) -> dict[str, Any]:
    return atomic_files.read_json(dict, file) if file.is_file() else {}


def _of_one_version(runs: Sequence[FoundRun], said: list[str]) -> list[FoundRun]:
    """The same runs, those of an earlier version given the settings that it did not have yet.

    A setting that a run lacks, that nobody has overridden and that is the same in all runs that have it has not been
    changed since: only the version was.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    for run in runs:
        for name, value in run.settings.items():
            if value not in values[name]:
                values[name].append(value)
    given = {name for run in runs for name in run.overrides}
    classes = {name.removesuffix("._target_") for name in values if name.endswith("_target_") and len(values[name]) > 1}
    new = {
        name: found[0]
        for name, found in values.items()
        if len(found) == 1 and name not in INDIFFERENT and not any(_within(name, each) for each in given | classes)
    }
    completed = []
    for run in runs:
        own = list(run.settings)
        lacking = {n: value for n, value in new.items() if not any(_within(n, o) or _within(o, n) for o in own)}
        if lacking:
            said.append(
                f"{run.folder} is of another version, without {_listed(sorted(lacking))}: taken to be as in the others."
            )
            run = replace(run, settings={**run.settings, **lacking})
        completed.append(run)  # as it is wherever it can be: a new one would be read again
    return completed


def _within(name: str, own: str) -> bool:
    """Whether ``own`` is the setting, or says that there is no such group."""
    return name == own or name.startswith(f"{own}.")


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(f"`{name}`" for name in names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))


def task_name(run: FoundRun) -> str:
    return str(run.settings["task._target_"]).rpartition(".")[2].lower()


def names_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number each where several are the same."""
    numbers = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [f"{name} ({n})" if names.count(name) > 1 else name for name, n in zip(names, numbers, strict=True)]


def _arms(runs: Sequence[FoundRun], said: list[str]) -> tuple[Arm, ...]:
    by_settings: dict[str, dict[int, FoundRun]] = defaultdict(dict)
    seeds = {SEED, *following(runs)}
    for run in sorted(runs, key=lambda run: (run.folder / "result.json").stat().st_mtime):
        same = by_settings[decisive(run.settings, seeds)]
        if run.seed in same:
            said.append(f"{same[run.seed].folder} was run again in {run.folder}; the later one counts.")
        same[run.seed] = run
    groups = [tuple(by_seed[seed] for seed in sorted(by_seed)) for by_seed in by_settings.values()]
    named = zip(labels([group[0] for group in groups], seeds), groups, strict=True)
    arms = [Arm(label, group[0].settings, group) for label, group in named]
    return tuple(sorted(arms, key=lambda arm: natural(arm.label)))


def decisive(settings: Settings, apart: Collection[str]) -> str:
    """What is equal where the settings are, but for those that are ``apart`` or change no number."""
    return repr(sorted((k, repr(v)) for k, v in settings.items() if k not in apart and k not in INDIFFERENT))


def following(runs: Sequence[FoundRun]) -> Iterator[str]:
    """The settings that have the run's own seed in every run that has them, as a rule that draws by chance."""
    for name in {name for run in runs for name in run.settings if name.endswith(f".{SEED}")}:
        if all(run.settings.get(name) in (None, run.seed) for run in runs):
            yield name


def labels(runs: Sequence[FoundRun], apart: Collection[str] = ()) -> list[str]:
    """What sets each apart from the others: overrides, and where these do not tell, settings.

    ``apart`` are names that do not count.
    """
    given = dict.fromkeys(name for run in runs for name in run.overrides if name not in {*apart, *INDIFFERENT})
    told = [name for name in given if len({_setting(run, name) for run in runs}) > 1]
    named = [", ".join(f"{name}={_setting(run, name)}" for name in told) for run in runs]
    if len(set(named)) < len(runs):
        names = sorted({name for run in runs for name in run.settings} - {*apart} - INDIFFERENT)
        told = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
        named = [", ".join(f"{name}={run.settings.get(name)}" for name in told) for run in runs]
    return [label or "as configured" for label in named]


def _setting(run: FoundRun, name: str) -> str:
    """A value, or what stands for a group: the option that was chosen, the class, the model."""
    settings = run.settings
    if settings.get(name) is not None:
        value = settings[name]
        return f"{value:g}" if isinstance(value, float) else str(value)
    if name in run.overrides:
        return run.overrides[name]
    made = str(settings.get(f"{name}._target_", "default")).rpartition(".")[2]
    return str(settings.get(f"{name}.checkpoint.name", made))


def natural(text: str) -> list[tuple[bool, float, str]]:
    """Sorts numbers in a text by their value."""
    parts = re.split(r"(-?\d+(?:\.\d+)?)", text)
    return [(bool(i % 2), float(part) if i % 2 else 0.0, "" if i % 2 else part) for i, part in enumerate(parts)]
