"""The public benchmarks under test, by name, and where their real files may be."""

from pathlib import Path

import pytest

from tests import fabricated
from tskd.tasks.bbh import Bbh
from tskd.tasks.gsm8k import Gsm8k
from tskd.tasks.mbpp import Mbpp
from tskd.tasks.mmlu import Mmlu

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real benchmark files in {REAL}")
YAMLS = ROOT / "tskd" / "tasks" / "lm_eval_tasks"


def code_allowed(root, **settings):
    return Mbpp(root, allow_code_execution=True, unsandboxed=True, **settings)


KINDS = {"bbh": Bbh, "gsm8k": Gsm8k, "mbpp": code_allowed, "mmlu": Mmlu}
SMALL = {
    "bbh": {"subset": ("navigate", "snarks")},
    "gsm8k": {},
    "mbpp": {},
    "mmlu": {"subset": fabricated.TWINS},
}
