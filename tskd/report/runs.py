"""Read runs from their folders, and group them by questions and settings."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from tskd.config import saved
from tskd.errors import RunFolderError
from tskd.records import PRIVATE, VOICES, Graded, Scored
from tskd.storage import atomic_files, run_folder

Settings = Mapping[str, Any]
Key = TypeVar("Key", int, tuple[str, int])
SEED, SUBSET = "seed", "task.subset"
# Settings that change no number: where things are, and how they are computed, shown and graded safely.
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
    """A run in its folder, finished or not, with its settings by dotted name.

    Its records are read when they are used.
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
    def benchmark(self) -> str:
        return str(self.settings["task._target_"]).rpartition(".")[2].lower()

    @property
    def seed(self) -> int:
        return int(self.settings[SEED])

    @property
    def job(self) -> tuple[float | str, int, str]:
        return self.settings["threshold"], self.settings[SEED], self.subset

    @cached_property
    def overrides(self) -> dict[str, str]:
        """The overrides of the command line by name; none if there was no command line."""
        file = self.folder / ".hydra" / "overrides.yaml"
        given = [str(each) for each in OmegaConf.load(file)] if file.is_file() else []
        return {name.lstrip("+"): value for name, _, value in (each.partition("=") for each in given)}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of each iteration."""
        return run_folder.RunFolder(self.folder).rows()

    @cached_property
    def graded(self) -> dict[str, list[Graded]]:
        """Each voice's answers to the held-out questions; empty without questions."""
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
        """The shares of texts that repeat 8 words in a row, from `tskd.audit`."""
        kinds = _read(self.folder / "audit.json")
        return {
            f"audit/{kind}": max(found["with_8_words"] / max(1, found["texts"]) for found in against.values())
            for kind, against in kinds.items()
        }

    @cached_property
    def evalplus(self) -> dict[str, Any]:
        """The numbers of EvalPlus, from `tskd.evalplus`; empty without them."""
        return _read(self.folder / "evalplus" / "result.json")

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """Split and question of all held-out questions, in the order of the answers."""
        return tuple((answer.split, answer.question) for answer in self.graded.get("teacher", ()))

    def check(self) -> None:
        """Read everything.

        Raises:
            RunFolderError: A file is damaged or missing; the message names it.
        """
        if not self.result:
            raise RunFolderError(f"There is no {self.folder / 'result.json'}, although the run is said to be completed")
        if not self.rows:
            raise RunFolderError(f"There is no row in {self.folder / 'metrics.jsonl'}")
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
    """Runs that differ only in their seed, in its order, and the label of the arm."""

    label: str
    settings: Settings
    runs: tuple[FoundRun, ...]

    @cached_property
    def scored(self) -> list[tuple[Scored, bool]]:
        """What its runs scored, and whether it was kept; the kept first in each run."""
        sides = ((side, side is run.kept) for run in self.runs for side in (run.kept, run.dropped))
        return [(example, is_kept) for side, is_kept in sides for example in side]

    @property
    def threshold(self) -> float | None:
        """The threshold, ``None`` for ``auto``."""
        value = self.settings.get("threshold")
        return float(value) if isinstance(value, (int, float)) else None


@dataclass(frozen=True)
class Study:
    """Arms that can be compared, as they were asked the same held-out questions."""

    name: str
    arms: tuple[Arm, ...]

    @property
    def num_questions(self) -> int:
        """The number of private questions."""
        return sum(split == PRIVATE for split, _ in self.arms[0].runs[0].questions)


@dataclass(frozen=True)
class Collected:
    """Studies, and a line for each run that does not count or is odd."""

    studies: tuple[Study, ...]
    left_out: tuple[str, ...]


def runs_in(folder: Path) -> Iterator[FoundRun]:
    """Read all runs in a folder and below.

    Raises:
        RunFolderError: There is none, or a file is damaged.
    """
    yield from map(_read_run, _folders(folder))


def read_completed_run(folder: Path) -> FoundRun:
    """Read and check the run in this very folder.

    Raises:
        RunFolderError: The run is damaged or not completed.
    """
    if not (file := folder / "config.yaml").is_file():
        raise RunFolderError(f"There is no run in {folder}: it has no {file.name}.")
    run = _read_run(folder)
    if run.status != "completed":
        raise RunFolderError(f"The run in {folder} is {run.status}. Go on with `python -m tskd.run resume={folder}`.")
    run.check()
    return run


def collect(folders: Sequence[Path]) -> Collected:
    """Group the completed runs in these folders and below into studies.

    Raises:
        RunFolderError: There is no completed run.
    """
    left_out: list[str] = []
    by_questions: dict[Any, list[FoundRun]] = defaultdict(list)
    for each in dict.fromkeys(found.resolve() for folder in folders for found in _folders(folder)):
        try:
            run = _read_run(each)
            if run.status == "completed":
                run.check()
                by_questions[run.settings["task._target_"], run.questions or run.subset].append(run)
            else:
                left_out.append(f"{run.folder} is {run.status}" + (f": {run.error}" * bool(run.error)) + ".")
        except RunFolderError as error:
            left_out.append(f"{each} is damaged. {str(error).rstrip('.')}.")
    if not by_questions:
        raise RunFolderError(f"None of the {len(left_out)} runs there is complete. " + " ".join(left_out))
    if len(by_questions) > 1:
        left_out.append(
            f"The runs were asked {len(by_questions)} different sets of held-out questions; "
            "each has tables of its own. Nothing is averaged or compared across them but subsets of one benchmark, "
            "where several were run alone."
        )
    studies = [
        Study(" ".join(filter(None, [runs[0].benchmark, runs[0].subset])), _arms(runs, left_out))
        for runs in by_questions.values()
    ]
    studies.sort(key=lambda study: study.name)
    names = number_repeats([study.name for study in studies])
    named = tuple(replace(study, name=name) for study, name in zip(studies, names, strict=True))
    return Collected(named, tuple(left_out))


def flatten(node: Any, name: str = "") -> Settings:
    """Resolve a configuration into values by dotted name; lists are values."""
    node = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(node, dict):
        return {name: node}
    parts = (flatten(value, f"{name}.{key}" if name else str(key)) for key, value in node.items())
    return dict(chain.from_iterable(part.items() for part in parts))


def _folders(folder: Path) -> list[Path]:
    """Find the folders of runs in and below a folder.

    Jobs that ended before they had a configuration count too.
    """
    found = []
    for file in sorted(folder.rglob("config.yaml")):  # Hydra's own and W&B's have the same name
        if file.parent.name == ".hydra":
            job = file.parents[1]
            if not (job / "config.yaml").is_file() and _read(job / "status.json").get("status") != "completed":
                found.append(job)  # a completed job without a configuration made a teacher, and is no run
        elif "wandb" not in file.parts[-4:]:
            found.append(file.parent)
    if not found:
        raise RunFolderError(f"There is no run in {folder}; give folders of runs or sweeps.")
    return found


def _read_run(folder: Path) -> FoundRun:
    settings = flatten(saved.of_run(folder)) if (folder / "config.yaml").is_file() else {}
    result, status = (_read(folder / name) for name in ("result.json", "status.json"))
    error = str(status.get("error", "")).rstrip(".")
    return FoundRun(folder, settings, result, status.get("status", "unfinished"), error)


def _read(file: Path) -> dict[str, Any]:
    return atomic_files.read_json(dict, file) if file.is_file() else {}


def _of_one_version(runs: Sequence[FoundRun], left_out: list[str]) -> list[FoundRun]:
    """Give runs of an earlier version the settings that it did not have yet.

    A setting is taken to be new, rather than changed, if nobody has overridden it and all runs that have it agree.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    for run in runs:
        for name, value in run.settings.items():
            if value not in values[name]:
                values[name].append(value)
    changed = {name for run in runs for name in run.overrides}
    changed |= {
        name.removesuffix("._target_") for name in values if name.endswith("_target_") and len(values[name]) > 1
    }
    new = {
        name: found[0]
        for name, found in values.items()
        if len(found) == 1 and name not in INDIFFERENT and not any(_within(name, each) for each in changed)
    }
    completed = []
    for run in runs:
        own = list(run.settings)
        lacking = {n: value for n, value in new.items() if not any(_within(n, o) or _within(o, n) for o in own)}
        if lacking:
            names = abbreviate([f"`{name}`" for name in sorted(lacking)])
            left_out.append(f"{run.folder} is of another version, without {names}: taken to be as in the others.")
            run = replace(run, settings={**run.settings, **lacking})
        completed.append(run)  # unchanged if possible: a copy would read its records again
    return completed


def _within(name: str, own: str) -> bool:
    """Return whether ``own`` is the setting or its group."""
    return name == own or name.startswith(f"{own}.")


def abbreviate(names: Sequence[str], most: int = 3) -> str:
    """List the first names, and count the others."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def number_repeats(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once."""
    numbers = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [f"{name} ({n})" if names.count(name) > 1 else name for name, n in zip(names, numbers, strict=True)]


def _arms(runs: Sequence[FoundRun], left_out: list[str]) -> tuple[Arm, ...]:
    by_age = sorted(_of_one_version(runs, left_out), key=lambda run: (run.folder / "result.json").stat().st_mtime)
    again = "{0} was run again in {1}; the later one counts."
    groups = group_by_settings(by_age, {SEED}, lambda run: run.seed, again, left_out)
    return tuple(
        Arm(label, by_seed[min(by_seed)].settings, tuple(by_seed[seed] for seed in sorted(by_seed)))
        for label, by_seed in groups
    )


def group_by_settings(
    runs: Sequence[FoundRun], apart: set[str], key: Callable[[FoundRun], Key], again: str, left_out: list[str]
) -> list[tuple[str, dict[Key, FoundRun]]]:
    """Group runs with equal settings, except ``apart`` and those that follow the seed.

    Args:
        runs: Of two runs with the same key in a group, the later one counts.
        apart: Names of settings.
        key: Identifies a run in its group.
        again: The line for a run that does not count, with places for its folder and the other's.
        left_out: Takes these lines.

    Returns:
        The label of each group and its runs, in natural order of the labels.
    """
    apart = apart | set(_following(runs))
    groups: dict[str, dict[Key, FoundRun]] = defaultdict(dict)
    for run in runs:
        group = groups[decisive(run.settings, apart)]
        if earlier := group.get(key(run)):
            left_out.append(again.format(earlier.folder, run.folder))
        group[key(run)] = run
    named = labels([group[min(group)] for group in groups.values()], apart)
    return sorted(zip(named, groups.values(), strict=True), key=lambda each: _natural(each[0]))


def decisive(settings: Settings, apart: Collection[str]) -> str:
    """Return a key of the settings, without ``apart`` and those that change no number."""
    return repr(sorted((k, repr(v)) for k, v in settings.items() if k not in apart and k not in INDIFFERENT))


def _following(runs: Sequence[FoundRun]) -> Iterator[str]:
    """Yield the settings that equal the seed in every run that has them."""
    for name in {name for run in runs for name in run.settings if name.endswith(f".{SEED}")}:
        if all(run.settings.get(name) in (None, run.seed) for run in runs):
            yield name


def labels(runs: Sequence[FoundRun], apart: Collection[str] = ()) -> list[str]:
    """Label each run by the overrides, or else the settings, in which it differs.

    Args:
        runs: The runs to tell apart.
        apart: Names that do not count.
    """
    ignored = {*apart, *INDIFFERENT}
    overridden = dict.fromkeys(name for run in runs for name in run.overrides if name not in ignored)
    named = _label_by(_setting, overridden, runs)
    if len(set(named)) < len(runs):
        names = sorted({name for run in runs for name in run.settings} - ignored)
        named = _label_by(lambda run, name: run.settings.get(name), names, runs)
    return [label or "as configured" for label in named]


def _label_by(setting: Callable[[FoundRun, str], Any], names: Collection[str], runs: Sequence[FoundRun]) -> list[str]:
    differing = [name for name in names if len({repr(setting(run, name)) for run in runs}) > 1]
    return [", ".join(f"{name}={setting(run, name)}" for name in differing) for run in runs]


def _setting(run: FoundRun, name: str) -> str:
    """Format a value; a group is its chosen option, its class or its model."""
    settings = run.settings
    if settings.get(name) is not None:
        value = settings[name]
        return f"{value:g}" if isinstance(value, float) else str(value)
    if name in run.overrides:
        return run.overrides[name]
    made = str(settings.get(f"{name}._target_", "default")).rpartition(".")[2]
    return str(settings.get(f"{name}.checkpoint.name", made))


def _natural(text: str) -> list[tuple[bool, float, str]]:
    """Make a key that sorts the numbers in a text by their value."""
    parts = re.split(r"(-?\d+(?:\.\d+)?)", text)
    return [(bool(i % 2), float(part) if i % 2 else 0.0, "" if i % 2 else part) for i, part in enumerate(parts)]
