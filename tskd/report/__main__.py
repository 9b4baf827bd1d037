"""The command line of reports; see the package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tskd.errors import TskdError
from tskd.report import check_installed, runs, watch

PRIVATE = (
    "report.html, examples.* and failures.csv hold prompts and responses: keep them as safe as the runs. "
    "The rest is numbers."
)


def main() -> None:
    try:
        if sys.argv[1:2] == ["grid"]:
            _grid(sys.argv[2:])
        else:
            _report(sys.argv[1:])
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def _report(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tskd.report",
        description="Tables (Markdown, LaTeX, CSV), figures (PNG, SVG) and a page (HTML) of finished runs, from their "
        "folders alone.",
        epilog="python -m tskd.report grid [DIR …]: the published tables, beside what runs have reached.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of runs or sweeps")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report in the first folder)")
    parser.add_argument("--watch", action="store_true", help="show the jobs while they run, and write nothing")
    parser.add_argument(
        "--embeddings",
        metavar="MODEL",
        help="a folder or a hub id: the prompts' Vendi score and mean distance by the mean of its last hidden states",
    )
    given = parser.parse_args(arguments)
    if given.watch:
        watch.watch(given.folders, Console(highlight=False, markup=False, emoji=False))
        return
    check_installed()
    from tskd.report.write import write

    embed = None
    if given.embeddings:
        from tskd.report.embeddings import Embedder  # needs the models' code; the rest reads files

        embed = Embedder(given.embeddings)
    collection = runs.collect(given.folders)
    for said in collection.left_out:
        print(said, file=sys.stderr)
    for file in write(collection, given.out or given.folders[0] / "report", embed):
        print(file)
    print(PRIVATE)


def _grid(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tskd.report grid", description="The published tables, in Markdown."
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="folders of runs or sweeps")
    given = parser.parse_args(arguments)
    from tskd.report import grid  # needs the models' code; the rest of a report reads files

    print(grid.grid(given.folders))


if __name__ == "__main__":
    main()
