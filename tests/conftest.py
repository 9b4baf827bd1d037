import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests import tiny
from tests.stub import Stub
from tskd.modules.trainer import LightningTrainer

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background; what is started here would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
constants.HF_HUB_OFFLINE = True  # of this process, which has read its environment by now


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny-neox", "neox")


@pytest.fixture(scope="session")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_adapter(llama, tmp_path_factory.mktemp("adapters") / "tiny-adapter")


@pytest.fixture(scope="session")
def trainer() -> LightningTrainer:
    return LightningTrainer(accelerator="cpu", progress=False)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, Any], Any]], Stub]]:
    """Starts servers that answer as they are told, and ends them."""
    with ExitStack() as stubs:
        yield lambda behave: stubs.enter_context(Stub(behave))
