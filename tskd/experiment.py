"""Run TuneShift-KD from the command line: compose, build the stages, consume the iterations.

python -m tskd.run                                      # the embedded world
python -m tskd.run -m threshold=0.5,1.0 target=llama3   # a sweep
python -m tskd.run resume=outputs/…                     # go on with a stopped run
python -m tskd.run … resume=auto                        # with the newest of this configuration, or begin one
python -m tskd.run sweep.resume=outputs/…               # with the jobs of a sweep that are not completed
"""

import logging
import time
from collections.abc import Mapping, Sequence
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
from tskd.records import PRIVATE, Iteration, Selection
from tskd.runtime import interrupts
from tskd.stages.coverage import Covered, coverage
from tskd.stages.select.stage import shown
from tskd.stages.select.subsets import AtMost
from tskd.storage import atomic_files, run_folder
from tskd.tasks import Benchmark, Task
from tskd.tracking import console
from tskd.tracking.wandb import Tracker
from tskd.tuneshift import tuneshift

log = logging.getLogger(__name__)
OBJECTIVE = "eval/accuracy"  # conf/hydra/sweeper/search.yaml and experiments/wandb_sweep.yaml say the same


def job(cfg: dict[str, Any], folder: Path, group: str, job_type: str) -> Row:
    """One run from its resolved configuration to its result, going on from what ``folder`` already holds."""
    files = run_folder.RunFolder(folder)

    def log_step(step: int, loss: float) -> None:
        tracker.step(len(files.rows()), step, loss)  # only called while training, when the tracker is open

    _check_is_the_same(cfg, folder)
    run = build(cfg, folder, log_step)
    interrupts.after(run.settings.max_hours)
    run.check_models()
    atomic_files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
    console.header(_header(run))
    for line in run.advice():
        log.warning(line)
    _make_teacher(run)
    atomic_files.write_json(folder / "provenance.json", provenance.of(run))
    with _open_tracker(run, cfg, folder, group, job_type) as tracker:
        evaluator = run.evaluator.answered_by(run.teacher)

        def accuracy(model: LanguageModel, name: str) -> dict[str, Accuracy]:
            if not evaluator.questions:
                return {}
            return by_split(files.graded(name, lambda: run.store.graded(evaluator, model)))

        voices = {"base": run.base, "teacher": run.teacher, "target before": run.target}
        before = {voice: accuracy(model, voice.split()[0]) for voice, model in voices.items()}
        after: dict[str, Accuracy] = {}
        history = files.history()
        for past, finished in zip(history, files.rows(), strict=True):
            console.iteration(past.index, finished)
            tracker.iteration(past.index, finished, past.scored, _kept_ids(past))  # what it was told before is skipped
        started, reused = time.monotonic(), run.store.reused_seconds
        iterations = tuneshift(
            run.seeds,
            files.recording(run.store.sharing(run.stages, folder)),
            iterations=run.iterations,
            stop=run.stop,
            train_each_iteration=run.train_each_iteration,
            history=history,
        )
        for iteration in iterations:
            history.append(iteration)
            row: Row = iteration_metrics(
                iteration, [run.task.is_private(example.response.prompt) for example in iteration.scored]
            )
            row["prompts/coverage"] = coverage(history)
            if iteration.adapter is not None:
                after = accuracy(_tuned(run, folder, iteration), f"iteration_{iteration.index}")
                row |= evaluation_metrics(before, after)
            row["cost/seconds"] = time.monotonic() - started
            row["cost/reused_seconds"] = run.store.reused_seconds - reused
            started, reused = time.monotonic(), run.store.reused_seconds
            files.add_row({"iteration": iteration.index, **row})
            tracker.iteration(iteration.index, row, iteration.scored, _kept_ids(iteration))
            if iteration.adapter is not None:
                tracker.adapter(iteration.index, folder / iteration.adapter.path)
            console.iteration(iteration.index, row)
        if not history or history[-1].adapter is None:
            raise NothingToLearn(f"The run in {folder} has ended without an adapter.")
        result = run_metrics(run.task, history, files.rows(), before)
        atomic_files.write_json(folder / "result.json", result)
        tracker.finish_with(result)
    after = after or accuracy(_tuned(run, folder, history[-1]), f"iteration_{history[-1].index}")
    accuracies = {**before, "target after": after} if after else {}
    files.close()
    console.outcome(accuracies, result, folder, history[-1].adapter.path)
    return result


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


def _make_teacher(run: Run) -> None:
    if run.teacher_to_make is not None and isinstance(run.task, Benchmark):
        folder = Path(str(run.teacher.adapter))
        log.info("There is no teacher in %s yet; it is fine-tuned first.", folder)
        evaluate = partial(run.store.graded, run.evaluator)
        card = run.teacher_to_make.make(run.base, run.task, evaluate, run.trainer, folder, engine=run.engine)
        console.teacher(card, folder)


def _kept_ids(iteration: Iteration) -> set[str]:
    return {example.response.prompt.id for example in iteration.selection.kept}


def _tuned(run: Run, folder: Path, iteration: Iteration) -> LanguageModel:
    assert iteration.adapter is not None
    return LanguageModel(run.target.weights, str(folder / iteration.adapter.path))


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
