"""Keys as they would be if a file of the package had been edited. The file itself stays as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tskd.storage import fingerprint

ROOT = Path(fingerprint.__file__).parents[2]


@contextmanager
def edited(name: str, old: str, new: str) -> Iterator[None]:
    """Key results as after the replacement of ``old`` by ``new`` in the file ``name``, given from the root."""
    text = (ROOT / name).read_text()
    assert old in text

    def read(file: Path) -> bytes:
        return text.replace(old, new).encode() if file == ROOT / name else file.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_read", read)
        patch.setattr(fingerprint, "_sources", {})
        yield
