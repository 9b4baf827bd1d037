"""Results by content: what one job has computed, another takes.

An entry is named by a digest of all that decides it: the stage's settings and code, the models' weights, the input
records, and the versions of libraries (``tskd.storage.fingerprint``). Thresholds of a sweep so share expansion, answers and
scores, and two of them that keep the same examples share the training too. Entries are written whole and checked when
read: a damaged one is computed again.

python -m tskd.store                  # what is in it
python -m tskd.store --prune 5        # throw the entries away that were longest not used, down to 5 GB
"""

import argparse
from pathlib import Path

from tskd.storage.result_cache import RESULTS, entries, prune


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.store", description="What the store holds.")
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
