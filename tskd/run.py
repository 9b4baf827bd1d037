"""Run TuneShift-KD from the command line: compose, build the stages, consume the iterations.

python -m tskd.run                                      # the embedded world
python -m tskd.run -m threshold=0.5,1.0 target=llama3   # a sweep
python -m tskd.run resume=outputs/…                     # go on with a stopped run
python -m tskd.run … resume=auto                        # with the newest of this configuration, or begin one
python -m tskd.run sweep.resume=outputs/…               # with the jobs of a sweep that are not completed
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tskd import artifacts, config, console, jobs, provenance, stopping
from tskd.compose import Run, build
from tskd.coverage import Covered, coverage
from tskd.errors import ConfigError, NothingToLearn, OutOfTime, RunFolderError
from tskd.evaluate import Accuracy, by_split, mean_accuracy, recovered_gain
from tskd.metrics import Row, iteration_metrics
from tskd.models import LanguageModel
from tskd.modules import workers
from tskd.records import PRIVATE, Iteration, Selection
from tskd.stages.select import AtMost, shown
from tskd.tasks import Benchmark, Task
from tskd.tracking import Tracker
from tskd.tuneshift import tuneshift

log = logging.getLogger(__name__)
RESUMING = ("resume", "sweep.resume")
Outcome = TypeVar("Outcome")
OBJECTIVE = "eval/accuracy"  # conf/hydra/sweeper/search.yaml and experiments/wandb_sweep.yaml say the same


def job(cfg: dict[str, Any], folder: Path, group: str, job_type: str) -> Row:
    """One run from its resolved configuration to its result, going on from what ``folder`` already holds."""
    files = artifacts.RunFolder(folder)

    def log_step(step: int, loss: float) -> None:
        tracker.step(len(files.rows()), step, loss)  # only called while training, when the tracker is open

    _check_is_the_same(cfg, folder)
    run = build(cfg, folder, log_step)
    stopping.after(run.settings.max_hours)
    run.check_models()
    artifacts.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
    console.header(_header(run))
    for line in run.advice():
        log.warning(line)
    _make_teacher(run)
    artifacts.write_json(folder / "provenance.json", provenance.of(run))
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
        artifacts.write_json(folder / "result.json", result)
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
    if file.is_file() and (names := config.differences(OmegaConf.to_container(OmegaConf.load(file)), cfg)):
        raise ConfigError(
            f"{folder} holds a run with other settings ({', '.join(names[:3])}{', …' * (len(names) > 3)}); choose "
            f"another folder, or give its settings."
        )


@hydra.main(version_base="1.3", config_path=config.folder(), config_name="config")
def _hydra_job(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    if is_sweep and jobs.completed(folder):
        log.info("%s was completed before.", folder.name)
        return artifacts.read_json(dict, folder / "result.json").get(OBJECTIVE)
    group = Path(hydra_config.sweep.dir if is_sweep else folder).resolve().name
    result = with_status(
        folder, lambda: job(resolved(cfg, is_sweep), folder, group, "sweep-job" if is_sweep else "run")
    )
    return None if result is None else result.get(OBJECTIVE)  # what a search makes as high as it can


def with_status(folder: Path, work: Callable[[], Outcome]) -> Outcome | None:
    """What ``work`` gives, and a note of how it ended. An ordinary failure is noted, not raised, and gives ``None``:
    the next job of a sweep goes on."""
    with jobs.alone(folder), stopping.heeding_signals():
        try:
            jobs.record_start(folder)
            stopping.check()
            outcome = work()
        except (OutOfTime, stopping.Interrupted) as reason:
            jobs.record_stop(folder, reason)
            if isinstance(reason, stopping.Interrupted):
                raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it belongs into the job's own record)
            jobs.record_failure(folder, error)
        except BaseException:  # submitit's, say, which has Slurm queue the job again
            jobs.record_stop(folder, "Stopped at once, with all that was finished saved")
            raise
        else:
            jobs.record_success(folder)
            return outcome
    return None


def resume(folder: Path, overrides: Sequence[str]) -> None:
    """Go on with the run in ``folder``, under its own configuration, which ``overrides`` must not contradict."""
    stored = config.of_run(folder)
    OmegaConf.update(stored, "trainer.devices", workers.count())  # what several processes began, one may end
    for override in overrides:
        key, _, value = override.partition("=")
        given = OmegaConf.create({"value": OmegaConf.from_dotlist([f"value={value}"])["value"]})["value"]
        found = OmegaConf.select(stored, key.lstrip("+"))
        if key in config.FREE:
            OmegaConf.update(stored, key, given)
        elif isinstance(found, DictConfig) or found != given:
            raise ConfigError(f"`{override}` contradicts the run in {folder}, where {key} is {found}; leave it out.")
    jobs.keep_files_private(stored)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    cfg: Any = OmegaConf.to_container(stored, resolve=True, throw_on_missing=True)
    if not any(override.startswith("allow=") for override in overrides):
        cfg["allow"] = []  # the folder may have come from elsewhere
    with_status(folder, lambda: job(cfg, folder, folder.resolve().name, "run"))


def main() -> None:
    """The command line: ``resume=`` and ``sweep.resume=`` are read here, anything else is Hydra's."""
    workers.together(_main)


def _main() -> None:
    config.register()
    try:
        folder, arguments = to_go_on_with(sys.argv[1:])
        if folder is not None:
            resume(folder, arguments)
    except (ConfigError, RunFolderError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    if folder is None:
        sys.argv[1:] = arguments
        try:
            _hydra_job()
        except SystemExit:
            all_completed()
            raise
        except KeyboardInterrupt:  # of what waits for jobs that a launcher has sent to Slurm; they go on there
            all_completed()
            raise SystemExit(128 + signal.SIGINT) from None
        exit_with_status()
    elif not jobs.completed(folder):
        raise SystemExit(1)


def to_go_on_with(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of the run that is to go on, if it is to be one, and the arguments beside.

    Raises ``ConfigError`` where they do not belong together, ``RunFolderError`` where there is no such sweep.
    """
    given = {key: value for key, _, value in (each.partition("=") for each in arguments) if key in RESUMING}
    rest = [each for each in arguments if each.partition("=")[0] not in RESUMING]
    if "sweep.resume" in given:
        others = [each for each in rest if not each.startswith("allow=")]
        if others or len(given) > 1:
            raise ConfigError(f"`sweep.resume=` takes one sweep and `allow=`; leave out {' '.join(others)}.")
        command = jobs.command_of_sweep(Path(given["sweep.resume"]).expanduser())
        if named := [each for each in command if each.lstrip("+").startswith("allow=") and each not in rest]:
            raise ConfigError(f"The sweep was given `{named[0]}`; if you trust that code, give it again.")
        return None, command
    if "resume" not in given:
        return None, rest
    if any(argument.startswith("-") for argument in rest):
        raise ConfigError(f"`resume=` takes one run and no options; leave out {' '.join(rest)}.")
    if given["resume"] != "auto":
        return Path(given["resume"]).expanduser(), rest
    found = _newest_unfinished(rest)
    return (None, rest) if found is None else (found, [each for each in rest if each.partition("=")[0] in config.FREE])


def _newest_unfinished(overrides: Sequence[str]) -> Path | None:
    """Beside where a run with these overrides would be, the last unfinished one of the same configuration."""
    try:
        with hydra.initialize_config_dir(config.folder(), version_base="1.3"):
            composed = hydra.compose("config", list(overrides), return_hydra_config=True)
        runs = Path(composed.hydra.run.dir).parent
        with open_dict(composed):
            del composed["hydra"]
        return jobs.newest_unfinished(runs, resolved(composed))
    except (HydraException, OmegaConfBaseException, ConfigError):
        return None  # the run that begins then says what is wrong


def exit_with_status() -> None:
    """Show the table of a sweep, and leave with an exit code that tells whether every job was completed."""
    if not all_completed():
        raise SystemExit(1)


def all_completed() -> bool:
    """Whether all jobs of this process are; shows the table of a sweep."""
    if not jobs.started:  # --help, --cfg and the like
        return True
    (folder,) = jobs.started
    if (folder / "status.json").is_file():
        return jobs.completed(folder)
    of_sweep = jobs.of_sweep(folder)
    if any(status["status"] != "not started" for _, status, _ in of_sweep):  # else Hydra has said why
        console.sweep(of_sweep, folder)
    return bool(of_sweep) and all(status["status"] == "completed" for _, status, _ in of_sweep)


def resolved(cfg: DictConfig, is_sweep: bool = False, is_whole: bool = True) -> dict[str, Any]:
    """Plain values; where it need not be whole, what is missing is ``???``."""
    try:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=is_whole)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(str(error).split())}; set it on the command line.") from error
    if is_sweep and resolved["trainer"]["devices"] != 1:
        raise ConfigError(
            f"`trainer.devices` is {resolved['trainer']['devices']} in a sweep; give each job one device and run "
            f"several jobs at once (`hydra/launcher=gpus`), or run without -m."
        )
    if resolved["allow"] and HydraConfig.initialized() and not _allowed_by_hand():
        raise ConfigError(
            f"`allow` is {resolved['allow']!r} in a file, which cannot allow itself; leave it out there, and if you "
            f"trust the code, add it on the command line."
        )
    return resolved  # type: ignore[no-any-return]


def _allowed_by_hand() -> bool:
    given = HydraConfig.get()
    in_sweep_of_file = "allow" in (given.sweeper.get("params") or {})
    return not in_sweep_of_file and any(each.lstrip("+").startswith("allow=") for each in given.overrides.task)


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
        card = run.teacher_to_make.make(run.base, run.task, evaluate, run.trainer, folder)
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


if __name__ == "__main__":
    main()
