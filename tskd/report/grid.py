"""Write the published tables beside the results of finished runs, in Markdown.

python -m tskd.report grid                     # commands, estimated GPU-hours and published cells
python -m tskd.report grid outputs/…           # and the results of the runs and sweeps in these folders

A run fills a cell only if its configuration is the experiment's in all that decides a number. Rehearsals and runs on
other models, on a part of the data or with other settings are listed with what is different in them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd.config import hydra_plugins
from tskd.models import rehearsal
from tskd.report.runs import INDIFFERENT, SUBSET, FoundRun, Settings, abbreviate, flatten, runs_in
from tskd.report.statistics import mean_and_sd
from tskd.report.table_writer import columns, format_value, to_markdown
from tskd.stages.select.stage import shown

PUBLISHED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
PAPERS, TEXTS, PARAMETERS = (PUBLISHED[name] for name in ("papers", "texts", "parameters"))
FLOP, UTILISATION = (PUBLISHED["assumed"][name] for name in ("flop", "utilisation"))
PEAK_FLOPS = 1e12 * PUBLISHED["assumed"]["peak_tflops"]
CHARACTERS_PER_TOKEN = PUBLISHED["assumed"]["characters_per_token"]
SWEPT = ("threshold", "seed", SUBSET)
Scores = tuple[float, float, float]
TRANSFER = ("teacher", "target before", "target after")  # by the names in evalplus/result.json
MBPP, ORIGINAL_MBPP = "tskd.tasks.mbpp.Mbpp", "original MBPP, "


@dataclass(frozen=True)
class Experiment:
    """A row of the grid: settings, the values of its sweep, published numbers."""

    name: str
    settings: Settings
    sweep: Mapping[str, tuple[str, ...]]
    published: Mapping[str, str]

    @property
    def benchmark(self) -> str:
        return str(self.settings["task._target_"]).rpartition(".")[2].lower()

    @property
    def title(self) -> str:
        base, target = (self.settings[f"{model}.checkpoint.name"] for model in ("base", "target"))
        return f"{self.benchmark.upper()}, {base} → {target}"

    @property
    def command(self) -> str:
        leave = " task.allow_code_execution=true" if "task.allow_code_execution" in self.settings else ""
        return f"python -m tskd.run -m experiment={self.name}{leave}"

    @property
    def subsets(self) -> tuple[str, ...]:
        """The parts of the benchmark that the cell averages, or a single unnamed one."""
        return self.sweep.get(SUBSET, ("",))

    @property
    def transfers(self) -> int:
        """The number of transfers from one teacher: thresholds times seeds."""
        return len(self.sweep["threshold"]) * len(self.sweep["seed"])

    def concerns(self, run: FoundRun) -> bool:
        """Return whether the run has these models and this benchmark."""
        names = ("base.checkpoint.name", "target.checkpoint.name", "task._target_")
        return all(self.settings[name] == run.settings.get(name) for name in names)

    def differences(self, run: FoundRun) -> list[str]:
        """List how the run differs from this cell, the plainest first.

        A run that counts has no differences.
        """
        if is_rehearsal(run):
            return ["a rehearsal"]
        if run.status != "completed":
            return [run.status]
        names = sorted((self.settings.keys() | run.settings.keys()) - {*SWEPT} - INDIFFERENT)
        pairs = {name: (run.settings.get(name), self.settings.get(name)) for name in names}
        found = [f"`{name}` is {got}, not {expected}" for name, (got, expected) in pairs.items() if got != expected]
        if run.subset not in self.subsets:
            found.append(f"`{SUBSET}` is {run.subset}, and the cell is the mean of {len(self.subsets)} single ones")
        return found


def is_rehearsal(run: FoundRun) -> bool:
    paths = [str(value) for name, value in run.settings.items() if name.endswith("checkpoint.path")]
    return any(Path(path).is_relative_to(rehearsal.FOLDER) for path in paths)


def scores(run: FoundRun) -> dict[str, Scores]:
    """Return teacher, target before and target after in points, by the test's name.

    The name is empty if there is only one test.
    """
    own = _points(run.result[f"eval/{name}"] for name in ("teacher_accuracy", "target_accuracy", "accuracy"))
    if run.settings["task._target_"] != MBPP:
        return {"": own}
    by_evalplus = {
        f"{suite}, {run.evalplus['problems']['held-out']} problems, ": _points(values[voice] for voice in TRANSFER)
        for suite, values in run.evalplus.get("pass@1", {}).get("held-out", {}).items()
    }
    return by_evalplus | {ORIGINAL_MBPP: own}


@cache
def experiments() -> dict[str, list[Experiment]]:
    """Compose the rows, by the paper that published their cells."""
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return {
            paper: [_experiment(f"{paper}/{name}", published) for name, published in content["cells"].items()]
            for paper, content in PAPERS.items()
        }


def _experiment(name: str, published: Mapping[str, str]) -> Experiment:
    # The settings of a machine are not the experiment's; the group exists only if there are some.
    without_local = ["~local"] if Path(hydra_plugins.folder(), "local").is_dir() else []
    composed = compose("config", [f"experiment={name}", *without_local], return_hydra_config=True)
    sweep = {
        key: tuple(value.strip() for value in str(values).split(","))
        for key, values in composed.hydra.sweeper.params.items()
    }
    settings = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return Experiment(name, flatten(settings), sweep, published)


def obtained(experiment: Experiment, runs: Sequence[FoundRun]) -> str:
    """Write the cell in points, by threshold, over the seeds that have all subsets.

    Different tests, the original MBPP's and EvalPlus's, have lines of their own, under their names. Of two runs of the
    same job, the later one in ``runs`` counts.
    """
    if not runs:
        return "not run"
    results = {run.job: scores(run) for run in runs}
    names = dict.fromkeys(name for found in results.values() for name in found)
    thresholds, seeds = ({run.settings[key] for run in runs} for key in ("threshold", "seed"))
    lines = []
    for name, threshold in product(names, sorted(thresholds, key=str)):
        of_seeds = [
            [results.get((threshold, seed, part), {}).get(name) for part in experiment.subsets] for seed in seeds
        ]
        whole = [_voice_means(parts) for parts in of_seeds if None not in parts]
        if whole:
            teacher, before, after = zip(*whole, strict=True)
            voices = f"{fmean(teacher):.2f} / {fmean(before):.2f} / {format_value(mean_and_sd(after), 2)}"
            lines.append(f"{name}threshold {shown(threshold)}: {voices}, n = {len(whole)}")
    return "<br>".join(lines) or f"incomplete: {len(results)} of {len(experiment.subsets) * experiment.transfers} jobs"


def _voice_means(parts: Iterable[Any]) -> list[float]:
    return [fmean(values) for values in zip(*parts, strict=True)]


def _points(fractions: Iterable[float]) -> Scores:
    teacher, before, after = (100 * fraction for fraction in fractions)
    return teacher, before, after


def hours(kind: str, tokens: float, model: str) -> float:
    """Estimate the GPU-hours for ``model`` to train on, read or write so many tokens."""
    return float(tokens * FLOP[kind] * PARAMETERS[model] / (PEAK_FLOPS * UTILISATION[kind]) / 3600)


def estimate(experiment: Experiment) -> tuple[float, float]:
    """Estimate the GPU-hours of all teachers, and of the transfers of one job each."""
    of, texts = experiment.settings, TEXTS[experiment.benchmark]
    base, target = of["base.checkpoint.name"], of["target.checkpoint.name"]
    writer = target if of["expansion.writer"] == "target" else base
    prompt, answer = texts["prompt"] / CHARACTERS_PER_TOKEN, texts["answer"] / CHARACTERS_PER_TOKEN
    drafts = len(experiment.subsets) * of["iterations"] * of["expansion.num_drafts"]
    asked = drafts + len(experiment.subsets) * of["task.num_seeds"]

    def evaluation(model: str) -> float:
        written = texts["held_out"] * of["task.response_tokens"]
        return hours("read", texts["held_out"] * prompt, model) + hours("write", written, model)

    teachers = hours("train", texts["private"] * of["teacher.lora.epochs"] * (prompt + answer), base)
    transfer = (
        hours("read", drafts * of["expansion.num_exemplars"] * prompt, writer)
        + hours("write", drafts * prompt, writer)
        + hours("read", asked * prompt, base)
        + hours("write", asked * answer, base)
        + hours("read", 2 * asked * (prompt + answer), base)  # scored under base and teacher
        + hours("train", asked * of["training.lora.epochs"] * (prompt + answer), target)
    )
    before_and_after = 2 * evaluation(base) + 2 * evaluation(target)
    return teachers + 2 * evaluation(base), transfer + before_and_after


def grid(folders: Sequence[Path]) -> str:
    """Write each paper's table, and below them the runs that fill no cell and why."""
    runs = list({run.folder.resolve(): run for folder in folders for run in runs_in(folder)}.values())
    parts = [PUBLISHED["notes"], PUBLISHED["assumptions"].format(**PUBLISHED["assumed"])]
    left_out: dict[str, list[str]] = defaultdict(list)
    heads = columns("transfer", "command", "GPU-hours, estimated", "published", "obtained")
    for paper, experiments_of_paper in experiments().items():
        rows = []
        for experiment in experiments_of_paper:
            counted = []
            for run in filter(experiment.concerns, runs):
                if differences := experiment.differences(run):
                    left_out[abbreviate(differences, 1)].append(str(run.folder))
                else:
                    counted.append(run)
            rows.append([*_about(experiment), obtained(experiment, counted)])
        about = PAPERS[paper]
        parts += [
            f"### {about['title']} ({about['source']})",
            f"Published: {' / '.join(about['columns'])}. {about['note']}",
            to_markdown(heads, rows),
        ]
    if left_out:
        lines = [f"- {why}: {abbreviate(them, 1)}" for why, them in left_out.items()]
        parts += ["### In no cell", "\n".join(lines)]
    return "\n\n".join(parts)


def _about(experiment: Experiment) -> list[str]:
    teachers, transfer = estimate(experiment)
    count = experiment.transfers
    return [
        experiment.title,
        f"`{experiment.command}`",
        f"{teachers:.1f} + {count} × {transfer:.1f} = {teachers + count * transfer:.0f}",
        "<br>".join(f"{label}: {numbers}" for label, numbers in experiment.published.items()),
    ]
