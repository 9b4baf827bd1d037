"""Report on finished runs from their folders.

run folders → runs → findings and means → tables and figures → files

python -m tskd.report outputs/tuneshift/…      # tables and figures of runs and sweeps
python -m tskd.report grid outputs/…           # the published tables, and what these runs have reached of them
"""

from importlib.util import find_spec

from tskd.errors import TskdError


def check_installed() -> None:
    """Raise ``TskdError`` where something is missing that only reports need."""
    for package in ("matplotlib", "sacrebleu", "scipy", "statsmodels"):
        if find_spec(package) is None:
            raise TskdError(f"A report needs {package}, which is not installed: pip install 'tskd[report]'.")
