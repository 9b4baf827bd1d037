"""Show what the cache of results holds, and remove what was not used for longest.

python -m tskd.cache                  # what is in it
python -m tskd.cache --prune 5        # remove the entries that were not used for longest, down to 5 GB
"""

import argparse
from pathlib import Path

from tskd.storage.result_cache import RESULTS, entries, prune


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.cache", description="What the cache of results holds.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/.store"))
    parser.add_argument("--prune", type=float, metavar="GB", help="keep at most so much, the latest used")
    options = parser.parse_args()
    if not options.folder.is_dir():
        raise SystemExit(f"There is no store in {options.folder} (looked from {Path.cwd()}).")
    if options.prune is not None:
        removed = prune(options.folder, options.prune * 10**9)
        print(f"removed {len(removed)} entries, {sum(entry.size for entry in removed) / 10**6:.1f} MB")
    kept = entries(options.folder)
    for stage in RESULTS:
        sizes = [entry.size for entry in kept if entry.stage == stage]
        print(f"{stage:<10} {len(sizes):>6} entries {sum(sizes) / 10**6:>10.1f} MB")


if __name__ == "__main__":
    main()
