"""Fine-tune a teacher on the private split of a benchmark, and say how good it is.

python -m tskd.teach base=smollm2_135m task=bbh task.subset=navigate
python -m tskd.teach base=gemma3_270m task=bbh task.subset=navigate   # on a target: the upper bound of any transfer
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tskd.config import hydra_plugins, saved, sweeps
from tskd.runtime import processes
from tskd.storage.status import with_status


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="teach")
def _hydra_job(cfg: DictConfig) -> None:
    from tskd.experiment import teach  # here, because it loads torch

    folder = Path(HydraConfig.get().runtime.output_dir)
    with_status(folder, lambda: teach(saved.resolved(cfg), folder))


def main() -> None:
    processes.launch(_main)


def _main() -> None:
    hydra_plugins.register()
    sweeps.exit_with_status(_hydra_job)


if __name__ == "__main__":
    main()
