"""From one configuration to one result: prepare the run, evaluate the baselines, iterate, finish."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tskd.config import provenance, saved
from tskd.config.build import Run, build
from tskd.errors import ConfigError, NothingToLearn
from tskd.metrics.accuracy import Accuracy, by_split, mean_accuracy, recovered_gain
from tskd.metrics.iteration import Row, iteration_metrics
from tskd.models.weights import LanguageModel
from tskd.modules.lora import StepLog
from tskd.records import PRIVATE, Iteration, Selection
from tskd.runtime import interrupts
from tskd.stages.coverage import Covered, coverage
from tskd.stages.select.stage import shown
from tskd.stages.select.subsets import AtMost
from tskd.stages.teacher import CARD
from tskd.storage import atomic_files, run_folder
from tskd.tasks import Benchmark, Task
from tskd.tracking import console
from tskd.tracking.wandb import Tracker
from tskd.tuneshift import tuneshift

log = logging.getLogger(__name__)


def job(cfg: dict[str, Any], folder: Path, group: str, job_type: str) -> Row:
    """Run one resolved configuration to its result.

    Go on from what ``folder`` already holds: finished iterations, stages and evaluations are not repeated.

    Args:
        cfg: the resolved configuration.
        folder: where records, adapters and the result are written.
        group: the name that tracking gives to the runs of one sweep.
        job_type: how tracking calls this run, ``run`` or ``sweep-job``.

    Returns:
        The row of metrics that ``result.json`` holds.

    Raises:
        TskdError: if the configuration, a model or the folder cannot be used, or if no adapter was trained.
    """
    files = run_folder.RunFolder(folder)

    def log_step(step: int, loss: float) -> None:
        tracker.step(len(files.rows()), step, loss)  # only called while training, when the tracker is open

    run = prepare(cfg, folder, log_step)
    with _open_tracker(run, cfg, folder, group, job_type) as tracker:
        run = replace(run, evaluator=run.evaluator.answered_by(run.teacher))
        before = baselines(run, files)
        history = iterate(run, files, tracker, before)
        result = run_metrics(run.task, history, files.rows(), before)
        atomic_files.write_json(folder / "result.json", result)
        tracker.finish_with(result)
    finish(run, files, history[-1], before, result)
    return result


def prepare(cfg: dict[str, Any], folder: Path, log_step: StepLog | None = None) -> Run:
    """Build the run, check it, and make its teacher if there is none yet.

    Write ``config.yaml`` once the models are known to load, and ``provenance.json`` once the teacher exists.
    """
    _check_is_the_same(cfg, folder)
    run = build(cfg, folder, log_step)
    interrupts.after(run.settings.max_hours)
    run.check_models()
    atomic_files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
    console.header(_header(run))
    for line in run.advice():
        log.warning(line)
    if run.teacher_to_make is not None and isinstance(run.task, Benchmark):
        log.info("There is no teacher in %s yet; it is fine-tuned first.", run.teacher.adapter)
        console.teacher(_teacher_card(run), Path(str(run.teacher.adapter)))
    atomic_files.write_json(folder / "provenance.json", provenance.of(run))
    return run


def baselines(run: Run, files: run_folder.RunFolder) -> dict[str, dict[str, Accuracy]]:
    """Evaluate base, teacher and untouched target. Return each one's accuracies, by voice and split."""
    voices = {"base": run.base, "teacher": run.teacher, "target before": run.target}
    return {voice: _accuracy(run, files, model, voice.split()[0]) for voice, model in voices.items()}


def iterate(
    run: Run, files: run_folder.RunFolder, tracker: Tracker, before: Mapping[str, Mapping[str, Accuracy]]
) -> list[Iteration]:
    """Run the iterations that are not finished yet. Write, track and show a row of metrics for each.

    Returns:
        All iterations, the finished ones first; the last one has an adapter.

    Raises:
        NothingToLearn: if the run ends without an adapter.
    """
    history = files.history()
    for past, finished in zip(history, files.rows(), strict=True):
        console.iteration(past.index, finished)
        tracker.iteration(past.index, finished, past.scored, _kept_ids(past))  # the tracker skips what it has logged
    started, reused = time.monotonic(), run.store.reused_seconds
    for iteration in tuneshift(
        run.seeds,
        files.recording(run.store.sharing(run.stages, files.path)),
        iterations=run.iterations,
        stop=run.stop,
        train_each_iteration=run.train_each_iteration,
        history=history,
    ):
        history.append(iteration)
        row = iteration_metrics(iteration, [run.task.is_private(e.response.prompt) for e in iteration.scored])
        row["prompts/coverage"] = coverage(history)
        if iteration.adapter is not None:
            row |= evaluation_metrics(before, _tuned_accuracy(run, files, iteration))
        row["cost/seconds"] = time.monotonic() - started
        row["cost/reused_seconds"] = run.store.reused_seconds - reused
        started, reused = time.monotonic(), run.store.reused_seconds
        files.add_row({"iteration": iteration.index, **row})
        tracker.iteration(iteration.index, row, iteration.scored, _kept_ids(iteration))
        if iteration.adapter is not None:
            tracker.adapter(iteration.index, files.path / iteration.adapter.path)
        console.iteration(iteration.index, row)
    if not history or history[-1].adapter is None:
        raise NothingToLearn(f"The run in {files.path} has ended without an adapter.")
    return history


def finish(
    run: Run,
    files: run_folder.RunFolder,
    last: Iteration,
    before: Mapping[str, Mapping[str, Accuracy]],
    result: Row,
) -> None:
    """Remove the journal, and show the accuracies before and after, the gain, and where everything is."""
    assert last.adapter is not None
    after = _tuned_accuracy(run, files, last)
    files.close()
    console.outcome({**before, "target after": after} if after else {}, result, files.path, last.adapter.path)


def teach(cfg: dict[str, Any], folder: Path) -> None:
    """Make the teacher that ``cfg`` describes, or find it made. Its card is the result in ``folder``.

    Raises:
        TskdError: if ``cfg`` describes a teacher that is not made here, or its base cannot be used.
    """
    run = build(cfg, folder)
    interrupts.after(run.settings.max_hours)
    if not isinstance(run.task, Benchmark) or "lora" not in run.settings.teacher:
        raise ConfigError("`tskd.teach` makes the teacher that `teacher=finetuned` describes; leave it at that.")
    run.base.weights.check_loadable()
    run.check_adapter()
    made = Path(str(run.teacher.adapter))
    card = atomic_files.read_json(dict, made / CARD) if run.teacher_to_make is None else _teacher_card(run)
    atomic_files.write_json(folder / "result.json", {"eval/accuracy": card["teacher_accuracy"], **card})
    run_folder.RunFolder(folder).close()
    console.teacher(card, made)


def evaluation_metrics(before: Mapping[str, Mapping[str, Accuracy]], after: Mapping[str, Accuracy]) -> Row:
    """The tuned target's accuracies, and what it gained over the untouched one."""
    row: Row = {"eval/accuracy": mean_accuracy(after)}
    row |= {f"eval/{split}_accuracy": a.value for split, a in after.items() if split != PRIVATE}
    if PRIVATE in after:
        untouched, teacher = before["target before"][PRIVATE], before["teacher"][PRIVATE]
        row["eval/points_gained"] = 100 * (after[PRIVATE].value - untouched.value)
        row["eval/recovered_gain"] = recovered_gain(untouched, teacher, after[PRIVATE])
    return row


def run_metrics(
    task: Task,
    history: Sequence[Iteration],
    rows: Sequence[Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Accuracy]],
) -> Row:
    """The result of a run: its last evaluation, selection and costs over all iterations, and the baselines."""
    everything = Iteration(
        index=history[-1].index,
        expansion=history[-1].expansion,
        scored=tuple(example for past in history for example in past.scored),
        selection=Selection(
            kept=tuple(example for past in history for example in past.selection.kept),
            dropped=tuple(example for past in history for example in past.selection.dropped),
            threshold=history[-1].selection.threshold,
        ),
        adapter=history[-1].adapter,
        screened=tuple(prompt for past in history for prompt in past.screened),
    )
    result = iteration_metrics(everything, [task.is_private(e.response.prompt) for e in everything.scored])
    lasting = ("eval/", "train/", "prompts/coverage")
    result |= {key: value for key, value in rows[-1].items() if key.startswith(lasting)}
    for name in (
        "prompts/new",
        "prompts/duplicates",
        "prompts/near_duplicates",
        "prompts/malformed",
        "prompts/held_out",
        "prompts/screened",
        *(k for k in rows[-1] if k.startswith("cost/")),
    ):
        result[name] = sum(row.get(name) or 0 for row in rows)  # a run of an earlier version has fewer
    for voice, accuracies in before.items():
        result[f"eval/{voice.split()[0]}_accuracy"] = mean_accuracy(accuracies)
    result["iterations"] = len(history)
    return result


def _check_is_the_same(cfg: Mapping[str, Any], folder: Path) -> None:
    file = folder / "config.yaml"
    if file.is_file() and (names := saved.differences(OmegaConf.to_container(OmegaConf.load(file)), cfg)):
        raise ConfigError(
            f"{folder} holds a run with other settings ({', '.join(names[:3])}{', …' * (len(names) > 3)}); choose "
            f"another folder, or give its settings."
        )


def _open_tracker(run: Run, cfg: dict[str, Any], folder: Path, group: str, job_type: str) -> Tracker:
    settings = run.settings
    return run.tracking.open(
        folder,
        name=f"{run.target.name}-t{shown(settings.threshold)}-s{settings.seed}",
        group=group,
        job_type=job_type,
        tags=[run.base.name, run.target.name],
        config=cfg,
    )


def _teacher_card(run: Run) -> dict[str, Any]:
    """Fine-tune the teacher of a run that has none yet, and return its card."""
    assert run.teacher_to_make is not None
    assert isinstance(run.task, Benchmark)
    evaluate = partial(run.store.graded, run.evaluator)  # so that a later run need not evaluate it again
    folder = Path(str(run.teacher.adapter))
    return run.teacher_to_make.make(run.base, run.task, evaluate, run.trainer, folder, engine=run.engine)


def _accuracy(run: Run, files: run_folder.RunFolder, model: LanguageModel, name: str) -> dict[str, Accuracy]:
    """Return the accuracy of ``model`` by split, from the answers called ``name``; empty without questions."""
    if not run.evaluator.questions:
        return {}
    return by_split(files.graded(name, lambda: run.store.graded(run.evaluator, model)))


def _tuned_accuracy(run: Run, files: run_folder.RunFolder, iteration: Iteration) -> dict[str, Accuracy]:
    assert iteration.adapter is not None
    tuned = LanguageModel(run.target.weights, str(files.path / iteration.adapter.path))
    return _accuracy(run, files, tuned, f"iteration_{iteration.index}")


def _kept_ids(iteration: Iteration) -> set[str]:
    return {example.response.prompt.id for example in iteration.selection.kept}


def _rule(rule: Any) -> str:
    if isinstance(rule, AtMost):
        return f"at most {rule.keep} of {_rule(rule.of)}"
    threshold = getattr(rule, "threshold", None)
    return type(rule).__name__ + ("" if threshold is None else f", threshold {shown(threshold)}")


def _iterations(run: Run) -> str:
    if not isinstance(run.stop, Covered):
        return str(run.iterations)
    return f"until coverage {run.stop.coverage:g}, at most {run.iterations}"


def _header(run: Run) -> dict[str, str]:
    settings = run.settings
    header = {
        "base": f"{run.base.name} ({run.base.weights.checkpoint.path})",
        "teacher": f"base + {run.teacher.adapter}" if run.teacher.adapter else run.teacher.weights.checkpoint.path,
        "target": f"{run.target.name} ({run.target.weights.checkpoint.path})",
        "task": f"{len(run.seeds)} seeds, {len(run.evaluator.questions)} held-out questions",
        "select": _rule(getattr(run.stages.select, "rule", run.stages.select)),
        "iterations": f"{_iterations(run)}, seed {settings.seed}",
    }
    if run.reference is not run.base:
        header["reference"] = f"{run.reference.name}, a stand-in for the base"
    if "writer" in run.models:
        header["writer"] = f"{run.models['writer'].name} ({run.models['writer'].weights.checkpoint.path})"
    if isinstance(run.task, Benchmark):
        header["split"] = run.task.note
    return header
