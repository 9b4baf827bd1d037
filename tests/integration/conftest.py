import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_service_of_another_process():
    """W&B names its service in the environment of a process that has used it; a command would try to join that one."""
    os.environ.pop("WANDB_SERVICE", None)
