"""May the new model be shipped? What a finished run's held-out answers say about it, in plain words.

python -m tskd.verdict outputs/tuneshift/DIR               # as good as the teacher, within 2 points?
python -m tskd.verdict outputs/tuneshift/DIR --margin 1
"""

import argparse
import sys
from pathlib import Path

from tskd.errors import TskdError
from tskd.report import check_installed, runs
from tskd.results.equivalence import MARGIN, questions, verdict


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.verdict", description="May the new model be shipped?")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        help=f"points that may be lost and still be as good (default: {MARGIN:g})",
    )
    given = parser.parse_args()
    try:
        if not 0 < given.margin < 100:
            raise TskdError(f"`--margin` is {given.margin:g}; give points above 0 and below 100.")
        check_installed()
        run = runs.read_completed_run(given.run)
        print(verdict(run, given.margin, lambda: questions(run)))
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
