"""All that is wrong with a configuration, at once and before hours are spent: no weights are loaded, nothing is left.

python -m tskd.check                                      # the overrides are those of tskd.run
python -m tskd.check -m threshold=0.5,1.0 target=llama3   # each job of a sweep

A line for each problem; the exit code is 1 where there is one. Notes say what is right, but may not be expected.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tskd.config import hydra_plugins
from tskd.config.hydra_plugins import leaving_nothing
from tskd.config.inspection import Findings, findings
from tskd.config.saved import resolved
from tskd.errors import TskdError
from tskd.tracking.console import bold, console

failed: list[str] = []  # the problems that this process has found


def show(found: Findings) -> None:
    count = len(found.problems)
    said = "nothing wrong" if not count else "1 problem" if count == 1 else f"{count} problems"
    console.print(bold("Check"), f" {said}")
    for kind, lines in (("problem", found.problems), ("note", found.notes)):
        for line in lines:
            console.print(f"  {kind:<10} {line}")


@hydra.main(version_base="1.3", config_path=hydra_plugins.folder(), config_name="check")
def _hydra_job(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    groups = {key.partition(".")[0] for key in missing}
    overridden = HydraConfig.get().overrides.hydra
    place = Path(HydraConfig.get().run.dir) if any(each.startswith("hydra.run.dir=") for each in overridden) else None
    found = Findings()
    try:
        settings = resolved(cfg, is_whole=False)
        rest = {name: node for name, node in settings.items() if name not in groups}
        found = findings(rest, place or Path("outputs"))
    except TskdError as error:
        found.problems += map(str, error.args)
    found.problems[:0] = [f"`{key}` is missing; set it on the command line." for key in missing]
    show(found)
    failed.extend(found.problems)


def main() -> None:
    failed.clear()
    with leaving_nothing("check"):
        _hydra_job()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
