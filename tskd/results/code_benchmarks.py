"""EvalPlus's MBPP on a finished run: write each model's code, have it graded, read the numbers.

Problems, sanitizing and grading are those of the package ``evalplus`` (Liu et al. 2023, arXiv 2305.01210); prompts,
lengths and stops are those of its ``codegen`` (0.3.1). The command ``tskd.evalplus`` describes use, files and risks.
"""

import importlib.metadata
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from tskd.config.build import Run, build
from tskd.engines.engine import Engine
from tskd.engines.own import OwnLoop, generate
from tskd.errors import ConfigError, RunFolderError, TaskError
from tskd.models.encoding import check_context
from tskd.models.generation import Request, Sampling
from tskd.models.templates import FIXED, Chat
from tskd.models.weights import LanguageModel
from tskd.modules.trainer import LightningTrainer
from tskd.records import VOICES
from tskd.results.finished_run import FinishedRun
from tskd.storage import atomic_files, run_folder
from tskd.tasks.mbpp import HELD_OUT
from tskd.tracking.console import console

# All from evalplus 0.3.1: `codegen.run_codegen`, `provider.base` and `provider.utility`. Its hf backend also stops at
# texts in the prompt, as soon as that is longer than an earlier one; we do not.
REQUEST = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
ANSWER = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)
MAX_NEW_TOKENS = 768
STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
STOPS_OF_COMPLETION, STOPS_OF_BLOCK = (*STOPS, '\n"""', "\nassert"), (*STOPS, "\n```\n")

SUITES = ("EvalPlus MBPP", "EvalPlus MBPP+")  # with the original tests, and with EvalPlus's besides
RELEASES = "https://github.com/evalplus/mbppplus_release/releases"
IMAGE = "ganler/evalplus:latest"
HERE = "\N{HORIZONTAL ELLIPSIS}"  # where a chat model's answer goes on
# What the grader's process gets to know of this one's environment: no keys, which the code that it runs could take.
ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH"),
    *("MBPP_OVERRIDE_PATH", "EVALPLUS_MAX_MEMORY_BYTES"),
)


@dataclass(frozen=True)
class Problem:
    """A problem of EvalPlus: its id (``Mbpp/2``), what is asked, and the function that the tests call."""

    id: str
    prompt: str
    entry_point: str

    @property
    def text(self) -> str:
        return self.prompt.strip() + "\n"

    @property
    def is_held_out(self) -> bool:
        """Whether MBPP has it in the test split. Others are in the training split, which teachers are made of."""
        return int(self.id.rpartition("/")[2]) in HELD_OUT


@dataclass(frozen=True)
class Problems:
    """All problems, in EvalPlus's order; ``digest`` is its own MD5 of the file that they are from."""

    all: Sequence[Problem]
    digest: str

    @property
    def sets(self) -> dict[str, Sequence[Problem]]:
        """Those of MBPP's test split, and those that EvalPlus itself counts; without the first where there are none."""
        sets = {"held-out": [problem for problem in self.all if problem.is_held_out], "all": self.all}
        return {name: chosen for name, chosen in sets.items() if chosen}


@dataclass(frozen=True)
class Sample:
    """A model's code for one problem, by the names that EvalPlus reads, and the ``digest`` of the problems."""

    task_id: str
    solution: str
    digest: str


@dataclass(frozen=True)
class Verdict:
    """Of EvalPlus on one sample: ``pass``, ``fail`` or ``timeout`` in the original tests, and in those that it adds."""

    solution: str
    base_status: str
    plus_status: str | None

    @property
    def passed(self) -> dict[str, bool]:
        passes_base = self.base_status == "pass"
        return dict(zip(SUITES, (passes_base, passes_base and self.plus_status == "pass"), strict=True))


@dataclass(frozen=True)
class Verdicts:
    """What ``evalplus.evaluate`` leaves in its results file; of each problem, the verdicts on all samples."""

    hash: str
    eval: dict[str, list[Verdict]]


def evaluate(folder: Path, allow_code_execution: bool = False, allow: Sequence[str] = ()) -> Mapping[str, Any] | None:
    """The numbers of the finished run in ``folder``, as they are written to its ``evalplus/result.json``.

    ``None`` where code is not graded yet and may not be run here; then it says how to have it graded elsewhere. Raises
    ``TskdError`` where run, models, EvalPlus or its problems cannot be had.
    """
    run = FinishedRun.read(folder)
    problems = read_problems()
    names = run_folder.graded_as(run.adapter.parent.name)
    files = {voice: folder / "evalplus" / f"{name}.jsonl" for voice, name in names.items()}
    if unwritten := [voice for voice, file in files.items() if not file.is_file()]:
        models, made = models_of(run, allow)
        for voice in unwritten:
            check_room(models[voice], problems.all)
        _make_private(folder / "evalplus")
        for voice in unwritten:
            write_samples(files[voice], models[voice], problems, made.trainer, made.engine)
    samples = {voice: _samples(file, problems) for voice, file in files.items()}
    ungraded = [file for file in files.values() if not results_file(file).is_file()]
    if ungraded and not allow_code_execution:
        console.print(_how_to_grade(folder, ungraded))
        return None
    for file in ungraded:
        console.print(f"EvalPlus grades {file}")
        grade(file)
    verdicts = {voice: read_verdicts(file, samples[voice]) for voice, file in files.items()}
    result = {
        "evalplus": importlib.metadata.version("evalplus"),
        "problems_md5": problems.digest,
        "adapter": names["target after"],
        "problems": {name: len(chosen) for name, chosen in problems.sets.items()},
        "pass@1": {name: pass_at_1(chosen, verdicts) for name, chosen in problems.sets.items()},
    }
    atomic_files.write_json(folder / "evalplus" / "result.json", result)
    return result


def read_problems() -> Problems:
    """The problems, by EvalPlus's own reader: from its cache, the network, or the file that MBPP_OVERRIDE_PATH names.

    Raises ``ConfigError`` where EvalPlus is not installed, and ``TaskError`` where its problems cannot be had.
    """
    try:
        import evalplus.sanitize  # noqa: F401 (needed later; what it lacks is to be known now)
        from evalplus.data import get_mbpp_plus, get_mbpp_plus_hash
    except ImportError as error:
        raise ConfigError(f"EvalPlus's numbers need its package: pip install 'tskd[evalplus]' ({error}).") from error
    try:
        rows, digest = get_mbpp_plus(), get_mbpp_plus_hash()
        return Problems([Problem(id, row["prompt"], row["entry_point"]) for id, row in rows.items()], digest)
    except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:  # urllib's are OSErrors
        raise TaskError(
            f"EvalPlus's problems cannot be had ({type(error).__name__}: {error}); where there is no network, fetch "
            f"MbppPlus.jsonl.gz from {RELEASES} elsewhere, and name the file in MBPP_OVERRIDE_PATH."
        ) from error


def models_of(run: FinishedRun, allow: Sequence[str] = ()) -> tuple[dict[str, LanguageModel], Run]:
    """The run's four voices, checked and not loaded, and the run itself, on one device.

    What the run's folder allows does not count, for it may have come from elsewhere; only ``allow`` does.
    """
    settings = {**run.settings, "trainer": {**run.settings["trainer"], "devices": 1}, "allow": list(allow)}
    made = build(settings, run.folder)
    if made.teacher_to_make is not None:
        raise RunFolderError(
            f"The teacher of the run in {run.folder} is not in {made.teacher.adapter}; start this in the folder "
            f"where the run was started."
        )
    made.check_models()
    made.target.weights.check_adapter(str(run.adapter))
    tuned = LanguageModel(made.target.weights, str(run.adapter))
    return dict(zip(VOICES, (made.base, made.teacher, made.target, tuned), strict=True)), made


def check_room(model: LanguageModel, problems: Sequence[Problem]) -> None:
    """Raise ``ModelError`` where the longest problem and its answer do not fit the model."""
    longest = max(len(request(model, problem).ids) for problem in problems)
    check_context(model, longest + MAX_NEW_TOKENS, f"EvalPlus's longest problem, with {MAX_NEW_TOKENS} new tokens,")


def write_samples(
    file: Path, model: LanguageModel, problems: Problems, trainer: LightningTrainer, engine: Engine = OwnLoop()
) -> None:
    """Have ``model`` solve all problems, and write its code, sanitized by EvalPlus, to ``file``."""
    texts = solutions(model, problems.all, trainer, f"EvalPlus, {file.stem}", engine)
    samples = [
        Sample(problem.id, _sanitized(text, problem), problems.digest)
        for problem, text in zip(problems.all, texts, strict=True)
    ]
    results_file(file).unlink(missing_ok=True)  # EvalPlus would show it again, whatever the samples are
    atomic_files.write_lines(file, samples)


def solutions(
    model: LanguageModel,
    problems: Sequence[Problem],
    trainer: LightningTrainer,
    label: str = "EvalPlus",
    engine: Engine = OwnLoop(),
) -> list[str]:
    """A greedy solution of each problem, cut where EvalPlus cuts. One that goes on with the problem begins with it."""
    is_chat = isinstance(model.template, Chat)
    stop = STOPS_OF_BLOCK if is_chat else STOPS_OF_COMPLETION
    requests = [request(model, problem) for problem in problems]
    written = generate(model, requests, Sampling(MAX_NEW_TOKENS), trainer, engine, stop=stop, label=label)
    made = [each.text.replace("\t", "    ") for each in written]
    if is_chat:
        return made
    return [problem.text + code for problem, code in zip(problems, made, strict=True)]


def request(model: LanguageModel, problem: Problem) -> Request:
    """What EvalPlus lets the model read: the problem alone, or a chat whose last turn is begun as far as the code."""
    text = problem.text
    if isinstance(model.template, Chat):
        asked = f"{REQUEST}\n```\n{problem.prompt.strip()}\n```\n"
        begun = f"{ANSWER}\n```python\n{HERE}\n```\n"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": begun}]
        text = model.tokenizer.apply_chat_template(turns, tokenize=False, **FIXED).rpartition(HERE)[0]
    # Like EvalPlus, which gives a start token also to what a chat template has begun with one.
    return Request(tuple(model.tokenizer(text).input_ids))


def results_file(samples: Path) -> Path:
    """Where ``evalplus.evaluate`` writes what it makes of ``samples``."""
    return samples.with_name(f"{samples.stem}_eval_results.json")


def grade(samples: Path) -> None:
    """Have EvalPlus run and grade the code in ``samples``, in another process. Raises ``TaskError`` where it fails.

    It takes 20 seconds at least: EvalPlus waits so long for a thread that looks for samples that got stuck.
    """
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    command = [sys.executable, "-m", "evalplus.evaluate", "--dataset", "mbpp", "--samples", str(samples)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0 or not results_file(samples).is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise TaskError(f"EvalPlus could not grade {samples}: {said}. Try it by hand: {shlex.join(command)}")


def read_verdicts(file: Path, samples: Sequence[Sample]) -> dict[str, Verdict]:
    """EvalPlus's verdict on each of the ``samples`` in ``file``, by problem.

    Raises ``RunFolderError`` where its results are not of this code, or of other tests.
    """
    results = results_file(file)
    found = atomic_files.read_json(Verdicts, results)
    verdicts = {sample.task_id: found.eval.get(sample.task_id, []) for sample in samples}
    expected = [[sample.solution] for sample in samples]
    if any(found.hash != sample.digest for sample in samples):
        raise RunFolderError(
            f"{results} is of other tests (MD5 {found.hash}) than {file} is for; remove it, and have it graded again "
            f"by the same version of EvalPlus's problems."
        )
    if expected != [[verdict.solution for verdict in each] for each in verdicts.values()]:
        raise RunFolderError(f"{results} is not of the code in {file}; remove it, and have it graded again.")
    return {name: verdict for name, (verdict,) in verdicts.items()}


def pass_at_1(
    problems: Sequence[Problem], verdicts: Mapping[str, Mapping[str, Verdict]]
) -> dict[str, dict[str, float]]:
    """By suite, the fraction of ``problems`` that each voice solves."""
    return {
        suite: {voice: fmean(of[problem.id].passed[suite] for problem in problems) for voice, of in verdicts.items()}
        for suite in SUITES
    }


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot make {folder}: {error.strerror}.") from error


def _samples(file: Path, problems: Problems) -> list[Sample]:
    samples = atomic_files.read_lines(Sample, file)
    made_for = [(sample.task_id, sample.digest) for sample in samples]
    if made_for != [(problem.id, problems.digest) for problem in problems.all]:
        raise RunFolderError(
            f"{file} has code for other problems than EvalPlus has now (MD5 {problems.digest}); remove it to have it "
            f"written anew, or set MBPP_OVERRIDE_PATH to the problems that it was written for."
        )
    return samples


def _sanitized(text: str, problem: Problem) -> str:
    from evalplus.sanitize import sanitize

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, on what models write
        try:
            return str(sanitize(text, problem.entry_point))
        except (ValueError, RecursionError):  # of Python's parser, on the oddest of it, which cannot pass either
            return text


def _how_to_grade(folder: Path, files: Sequence[Path]) -> str:
    """The commands for a container, which has no network and sees nothing but the samples."""
    mounted = shlex.quote(f"{(folder / 'evalplus').resolve()}:/app")
    commands = [
        f"docker run --rm --network none -v {mounted} {IMAGE} evalplus.evaluate --dataset mbpp --samples /app/{name}"
        for name in (file.name for file in files)
    ]
    again = f"python -m tskd.evalplus {shlex.quote(str(folder))}"
    return "\n".join(
        [
            "The models' code is written, and not graded: EvalPlus would run it with your rights, without a sandbox. "
            "In a container:",
            *commands,
            f"and then once more {again}; or here: {again} --allow-code-execution",
        ]
    )


def _table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"pass@1, by EvalPlus {result['evalplus']}")
    table.add_column("")
    columns = [(name, suite) for name in result["pass@1"] for suite in SUITES]
    for name, suite in columns:
        title = suite.removeprefix("EvalPlus ")
        table.add_column(f"{title}\n{name}\nn = {result['problems'][name]}", justify="right")
    for voice in VOICES:
        table.add_row(voice, *(f"{result['pass@1'][name][suite][voice]:.3f}" for name, suite in columns))
    return table
