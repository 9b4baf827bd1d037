"""What finished runs have reached, beside what is published: a table in Markdown, from their folders alone.

python -m tskd.report grid                     # commands, estimated GPU-hours and published cells
python -m tskd.report grid outputs/…           # and what the runs and sweeps in these folders have reached

A run fills a cell only where its configuration is the experiment's in all that decides a number: no rehearsal does, and
no run on other models, on a part of the data or with other settings. Those are listed with what is other in them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tskd.config import hydra_plugins
from tskd.models import rehearsal
from tskd.report.runs import INDIFFERENT, SUBSET, FoundRun, Settings, flat, runs_in
from tskd.stages.select.stage import shown

PUBLISHED = Path(__file__).with_name("published.yaml")
SWEPT = ("threshold", "seed", SUBSET)
Scores = tuple[float, float, float]
TRANSFER = ("teacher", "target before", "target after")  # by the names in evalplus/result.json
MBPP, ORIGINAL_MBPP = "tskd.tasks.mbpp.Mbpp", "original MBPP, "


@dataclass(frozen=True)
class Experiment:
    """A row of the grid: its settings by dotted name, the values that its sweep gives to some, what is published."""

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
        """The parts of the benchmark that the cell is the mean of, each with a teacher of its own; or one, unnamed."""
        return self.sweep.get(SUBSET, ("",))

    def concerns(self, run: FoundRun) -> bool:
        """Whether the run is of these models and this benchmark, whatever else is set in it."""
        names = ("base.checkpoint.name", "target.checkpoint.name", "task._target_")
        return all(self.settings[name] == run.settings.get(name) for name in names)

    def differences(self, run: FoundRun) -> list[str]:
        """What makes the run's number another than this cell's, the plainest first."""
        if is_rehearsal(run):
            return ["a rehearsal"]
        if run.status != "completed":
            return [run.status]
        names = sorted((self.settings.keys() | run.settings.keys()) - {*SWEPT} - INDIFFERENT)
        pairs = {name: (run.settings.get(name), self.settings.get(name)) for name in names}
        said = [f"`{name}` is {got}, not {expected}" for name, (got, expected) in pairs.items() if got != expected]
        if run.subset not in self.subsets:
            said.append(f"`{SUBSET}` is {run.subset}, and the cell is the mean of {len(self.subsets)} single ones")
        return said


def is_rehearsal(run: FoundRun) -> bool:
    paths = [str(value) for name, value in run.settings.items() if name.endswith("checkpoint.path")]
    return any(Path(path).is_relative_to(rehearsal.FOLDER) for path in paths)


def scores(run: FoundRun) -> dict[str, Scores]:
    """Teacher, target before and target after, in points, by what they are of: "" where there is no choice."""
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
    """The rows, by the paper that published their cells."""
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return {
            paper: [_experiment(f"{paper}/{name}", published) for name, published in content["cells"].items()]
            for paper, content in papers().items()
        }


def _experiment(name: str, published: Mapping[str, str]) -> Experiment:
    # What a user has set for all runs on a machine is not the experiment's; there is no such group where nothing is.
    without_local = ["~local"] if Path(hydra_plugins.folder(), "local").is_dir() else []
    composed = compose("config", [f"experiment={name}", *without_local], return_hydra_config=True)
    sweep = {
        key: tuple(value.strip() for value in str(values).split(","))
        for key, values in composed.hydra.sweeper.params.items()
    }
    settings = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return Experiment(name, flat(settings), sweep, published)


def obtained(experiment: Experiment, runs: Sequence[FoundRun]) -> str:
    """The cell, in points: for each threshold, mean and standard deviation over the seeds that have all subsets.

    Numbers of different tests, the original MBPP's and EvalPlus's, are on lines of their own, under their names.
    Of two runs of the same job, the later one in ``runs`` counts.
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
        if whole := [each for scores in of_seeds if (each := _means(scores)) is not None]:
            teacher, before, after = zip(*whole, strict=True)
            voices = f"{fmean(teacher):.2f} / {fmean(before):.2f} / {_spread(after)}"
            lines.append(f"{name}threshold {shown(threshold)}: {voices}, n = {len(whole)}")
    jobs = len(experiment.subsets) * len(experiment.sweep["threshold"]) * len(experiment.sweep["seed"])
    return "<br>".join(lines) or f"incomplete: {len(results)} of {jobs} jobs"


def _means(scores: Sequence[Scores | None]) -> Scores | None:
    """The means over the subsets; ``None`` where one has not been run."""
    there = [each for each in scores if each is not None]
    if len(there) < len(scores):
        return None
    teacher, before, after = map(fmean, zip(*there, strict=True))
    return teacher, before, after


def _points(fractions: Iterable[float]) -> Scores:
    teacher, before, after = (100 * fraction for fraction in fractions)
    return teacher, before, after


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Texts:
    """A benchmark's private examples and held-out questions, over all subsets, and their mean lengths in characters."""

    private: int
    held_out: int
    prompt: int
    answer: int


TEXTS = {  # counted in the published files; a test counts again
    "bbh": Texts(private=3255, held_out=3256, prompt=369, answer=7),
    "mmlu": Texts(private=7286, held_out=7035, prompt=458, answer=1),
    "mbpp": Texts(private=371, held_out=500, prompt=356, answer=173),
    "gsm8k": Texts(private=250, held_out=1319, prompt=241, answer=2),
}
PARAMETERS = {  # of the checkpoints in conf/model
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "mistral_7b": 7_248_023_552,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_3b": 3_212_749_824,
}
# All that follows is assumed, not measured. Writing goes token by token and waits for memory.
FLOP = {"train": 6, "read": 2, "write": 2}  # per token and parameter
PEAK = 312e12  # FLOP/s of an A100 in bfloat16, by its data sheet
USED = {"train": 0.3, "read": 0.3, "write": 0.02}  # the utilisation, as a fraction of the peak
CHARACTERS_PER_TOKEN = 4
ASSUMPTIONS = f"""\
**GPU-hours are an estimate; nobody has measured them.** They are those of the teachers, plus thresholds × seeds times
those of a transfer. Each is a sum of tokens × FLOP × parameters / (FLOP/s × utilisation):
{FLOP["train"]} FLOP to train on a token, {FLOP["read"]} to read or write it; {PEAK / 1e12:g} TFLOP/s, an A100's peak;
a utilisation of {USED["train"]:.0%}, in writing of {USED["write"]:.0%}; {CHARACTERS_PER_TOKEN} characters a token;
synthetic texts as long as the benchmark's, held-out answers as long as they may be, everything kept.
Left out: the loading of models, and what the jobs of a sweep take from each other (`store`)."""


def hours(kind: str, tokens: float, model: str) -> float:
    """GPU-hours in which ``model`` trains on, reads or writes so many tokens."""
    return tokens * FLOP[kind] * PARAMETERS[model] / (PEAK * USED[kind]) / 3600


def estimate(experiment: Experiment) -> tuple[float, float]:
    """GPU-hours of all teachers, and of the transfers from them for one threshold and one seed."""
    of, texts = experiment.settings, TEXTS[experiment.benchmark]
    base, target = of["base.checkpoint.name"], of["target.checkpoint.name"]
    writer = target if of["expansion.writer"] == "target" else base
    prompt, answer = texts.prompt / CHARACTERS_PER_TOKEN, texts.answer / CHARACTERS_PER_TOKEN
    drafts = len(experiment.subsets) * of["iterations"] * of["expansion.num_drafts"]
    asked = drafts + len(experiment.subsets) * of["task.num_seeds"]

    def evaluation(model: str) -> float:
        written = texts.held_out * of["task.response_tokens"]
        return hours("read", texts.held_out * prompt, model) + hours("write", written, model)

    teachers = hours("train", texts.private * of["teacher.lora.epochs"] * (prompt + answer), base)
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


NOTES = """\
Obtained: teacher / target before / target after, in points, mean ± standard deviation over the seeds. BBH and MMLU: one
teacher and one transfer for each task or subject, and the mean over them, on the half of the questions that is held out
here; neither publishes a training split. GSM8K: the harness's flexible-extract. Models, sizes and training are what the
papers state, and ours where they do not (`conf/recipe` marks each); loop and filter are TuneShift-KD's, so no obtained
cell reproduces a published one.

MBPP: what is published is by EvalPlus, which asks other problems, in other words and with other tests, than
`task=mbpp`, the test split of the original `mbpp.jsonl`. Obtained cells name the one and the other. A finished run gets
EvalPlus's numbers by `pip install 'tskd[evalplus]'` and `python -m tskd.evalplus RUN`: it writes the models' code and
prints the commands that grade it in a container; with `--allow-code-execution` the code runs here, with your rights and
without a sandbox. Counted in a cell are the problems that MBPP has in its test split, for EvalPlus takes others from
the training split, which the teachers learn. The published numbers are not of all 378 problems of EvalPlus either: all
are whole numbers of 224ths, and of nothing smaller; that those 224 are the test split's is our reading."""


def grid(folders: Sequence[Path]) -> str:
    """The table of each paper, and below them the runs that fill no cell, with what is other in them."""
    runs = list({run.folder.resolve(): run for folder in folders for run in runs_in(folder)}.values())
    about_papers, parts = papers(), [NOTES, ASSUMPTIONS]
    left_out: dict[str, list[Path]] = defaultdict(list)
    for paper, rows in experiments().items():
        lines = ["| transfer | command | GPU-hours, estimated | published | obtained |", "|---|---|---|---|---|"]
        for experiment in rows:
            counted = []
            for run in filter(experiment.concerns, runs):
                said = experiment.differences(run)
                if not said:
                    counted.append(run)
                else:
                    left_out[said[0] + (f", and {len(said) - 1} more" if said[1:] else "")].append(run.folder)
            lines.append(f"| {' | '.join([*_about(experiment), obtained(experiment, counted)])} |")
        about = about_papers[paper]
        parts += [
            f"### {about['title']} ({about['source']})",
            f"Published: {' / '.join(about['columns'])}. {about['note']}",
            "\n".join(lines),
        ]
    if left_out:
        parts += ["### In no cell", "\n".join(f"- {said}: {_listed(them)}" for said, them in left_out.items())]
    return "\n\n".join(parts)


def _listed(folders: Sequence[Path]) -> str:
    return f"{folders[0]}" + (f" and {len(folders) - 1} more" if folders[1:] else "")


def _about(experiment: Experiment) -> list[str]:
    teachers, transfer = estimate(experiment)
    count = len(experiment.sweep["threshold"]) * len(experiment.sweep["seed"])
    return [
        experiment.title,
        f"`{experiment.command}`",
        f"{teachers:.1f} + {count} × {transfer:.1f} = {teachers + count * transfer:.0f}",
        "<br>".join(f"{label}: {numbers}" for label, numbers in experiment.published.items()),
    ]


def papers() -> dict[str, Any]:
    """What is published, and where, by paper."""
    return OmegaConf.to_container(OmegaConf.load(PUBLISHED))  # type: ignore[return-value]
