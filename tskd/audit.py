"""Whether synthetic prompts and responses repeat given text word for word: what is made from data may leak it.

python -m tskd.audit outputs/…                            # against its seeds, and private examples where there are some
python -m tskd.audit outputs/… --private notes.jsonl      # against other private texts, in the format of seeds
python -m tskd.audit outputs/… --examples 3               # and show so many of the longest repeats

A text repeats another where they have so many words in a row in common, case and punctuation aside: 13 in GPT-3's check
for contamination (Brown et al. 2020, arXiv 2005.14165, appendix C), and 8, which is ours and stricter. What is shorter
is found only where it is the whole of both texts. Words in another form or order are not found.
"""

import argparse
import sys
from pathlib import Path

from rich.text import Text

from tskd.errors import TskdError
from tskd.results.train_overlap import audit
from tskd.storage import atomic_files
from tskd.tracking.console import console


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tskd.audit", description="What a run's texts repeat word for word."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--private", nargs="+", default=[], metavar="FILE", help="other private texts, as seeds are given"
    )
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="show so many of the longest repeats")
    parser.add_argument("--allow", nargs="+", default=[], metavar="PACKAGE", help="where a task of your own is")
    arguments = parser.parse_args()
    try:
        found = audit(arguments.run, arguments.private, arguments.allow)
        figures = {kind: {of: each.figures for of, each in against.items()} for kind, against in found.items()}
        atomic_files.write_json(arguments.run / "audit.json", figures)
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    for kind, against in found.items():
        for of, each in against.items():
            console.print(f"{kind} against {of}: {each}")
            for index, run in each.runs[: arguments.examples]:
                console.print(Text(f"  {kind[:-1]} {index}, {len(run)} words: {' '.join(run)}"))


if __name__ == "__main__":
    main()
