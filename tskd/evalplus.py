"""EvalPlus's own numbers for a finished run: pass@1 on its MBPP and MBPP+ (Liu et al. 2023, arXiv 2305.01210).

python -m tskd.evalplus outputs/…                           # writes the models' code, and says how to have it graded
python -m tskd.evalplus outputs/… --allow-code-execution    # has it graded here too

This is another test than the original MBPP of ``task=mbpp``: other problems, prompts and tests. Problems, sanitizing
and grading are those of the package ``evalplus``; prompts, lengths and stops are those of its ``codegen`` (0.3.1),
greedy and without examples; models and generation are tskd's. In the run's folder, where only its owner can read it:

    evalplus/{base,teacher,target,iteration_2}.jsonl    each model's code, as ``evalplus.evaluate`` reads it
    evalplus/…_eval_results.json                        what ``evalplus.evaluate`` has made of it
    evalplus/result.json                                the numbers, which ``python -m tskd.report grid`` reads

What is there is not made again. **Grading runs model-written code with your rights**: EvalPlus's guard is "NOT a
security sandbox", by its own words, and ``tskd.tasks.sandbox.isolated_tests`` has no numpy, which its tests need.
"""

import argparse
import sys
from pathlib import Path

from tskd.errors import TskdError
from tskd.results.code_benchmarks import _table, evaluate
from tskd.tracking.console import console


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tskd.evalplus", description="EvalPlus's MBPP on a finished run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let EvalPlus run the models' code here, with your rights and without a sandbox",
    )
    parser.add_argument("--allow", nargs="*", default=[], metavar="PACKAGE", help="where classes of your own are")
    arguments = parser.parse_args()
    try:
        result = evaluate(arguments.run, arguments.allow_code_execution, arguments.allow)
    except TskdError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    if result is not None:
        console.print(_table(result))
        console.print(f"numbers: {arguments.run / 'evalplus' / 'result.json'}")


if __name__ == "__main__":
    main()
