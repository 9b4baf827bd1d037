"""``tskd COMMAND …`` is ``python -m tskd.COMMAND …``; without a command, it is ``run``."""

import importlib
import sys

COMMANDS = ("run", "teach", "check", "plan", "report", "export", "chat", "audit", "verdict", "cache", "evalplus")
ALIASES = {"try": "chat", "store": "cache"}


def main() -> None:
    """Run the command that the first argument names, and ``run`` if it names none (``tskd threshold=0.5``)."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    command = ALIASES.get(first, first)
    if command in COMMANDS:
        sys.argv[:2] = [f"{sys.argv[0]} {first}"]
    else:
        command = "run"
    module = "tskd.report.__main__" if command == "report" else f"tskd.{command}"
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
