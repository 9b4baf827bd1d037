"""Ask a run's target by hand, and see what it answers before and after the transfer.

python -m tskd.chat outputs/…                             # a prompt per line; an empty line ends
echo "What is …?" | python -m tskd.chat outputs/…
"""

import argparse
import sys
from pathlib import Path

from tskd.errors import TskdError
from tskd.results.dialogue import _converse


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.chat", description="Ask a run's target, before and after.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the longest answer (as in the run)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)")
    parser.add_argument("--allow", nargs="*", default=[], metavar="PACKAGE", help="where an engine of your own is")
    arguments = parser.parse_args()
    try:
        _converse(arguments.run, arguments.max_new_tokens, arguments.temperature, arguments.allow)
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
