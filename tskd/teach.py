"""Fine-tune a teacher on the private split of a benchmark, and say how good it is.

python -m tskd.teach base=smollm2_135m task=bbh task.subset=navigate
python -m tskd.teach base=gemma3_270m task=bbh task.subset=navigate   # on a target: the upper bound of any transfer
"""

from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tskd.config import hydra_plugins
from tskd.config.build import build
from tskd.config.saved import resolved
from tskd.config.sweeps import exit_with_status
from tskd.errors import ConfigError
from tskd.runtime import interrupts, processes
from tskd.stages.teacher import CARD
from tskd.storage import atomic_files, run_folder
from tskd.storage.status import with_status
from tskd.tasks import Benchmark
from tskd.tracking import console


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="teach")
def _hydra_job(cfg: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    with_status(folder, lambda: teach(cfg, folder))


def teach(cfg: DictConfig, folder: Path) -> None:
    """Make the teacher that ``cfg`` describes, or find it made; its card is the result in ``folder``."""
    run = build(resolved(cfg), folder)
    interrupts.after(run.settings.max_hours)
    if not isinstance(run.task, Benchmark) or "lora" not in run.settings.teacher:
        raise ConfigError("`tskd.teach` makes the teacher that `teacher=finetuned` describes; leave it at that.")
    run.base.weights.check_loadable()
    run.check_adapter()
    made = Path(str(run.teacher.adapter))
    if run.teacher_to_make is None:
        card = atomic_files.read_json(dict, made / CARD)
    else:
        evaluate = partial(run.store.graded, run.evaluator)  # so that a run with this teacher need not do it again
        card = run.teacher_to_make.make(run.base, run.task, evaluate, run.trainer, made, engine=run.engine)
    atomic_files.write_json(folder / "result.json", {"eval/accuracy": card["teacher_accuracy"], **card})
    run_folder.RunFolder(folder).close()
    console.teacher(card, made)


def main() -> None:
    processes.launch(_main)


def _main() -> None:
    hydra_plugins.register()
    _hydra_job()
    exit_with_status()


if __name__ == "__main__":
    main()
