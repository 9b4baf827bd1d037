"""Ship what a finished run made: the adapter, or the target with it merged in, and a card that says what it is.

python -m tskd.export outputs/…            # the last iteration's adapter, in PEFT's format
python -m tskd.export outputs/… --merged   # a whole model

A card has settings, figures and names; prompts, responses and the paths of this machine stay here.
"""

import argparse
import sys
from pathlib import Path

from tskd.errors import TskdError
from tskd.moved import attributes_of
from tskd.results.packaging import export
from tskd.tracking.console import console

__getattr__ = attributes_of(__name__)  # names that were here when this was one file


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.export", description="Ship what a finished run made.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (RUN/export)")
    parser.add_argument("--merged", action="store_true", help="write a whole model, the adapter merged into the target")
    parser.add_argument("--force", action="store_true", help="replace the earlier export in DIR")
    arguments = parser.parse_args()
    try:
        out = export(arguments.run, arguments.out, merged=arguments.merged, force=arguments.force)
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    console.print(f"{'model' if arguments.merged else 'adapter (PEFT)'} with its card: {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
