"""Libraries stay silent in each pass, also after a caller has restored the warning filters."""

import warnings

from tskd.models.libraries import quiet_libraries
from tskd.modules.trainer import LightningTrainer


def messages():
    return {str(pattern.pattern) for _, pattern, *_ in warnings.filters if pattern is not None}


def test_filters_are_set_again_after_they_were_restored():
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.resetwarnings()
            quiet_libraries()
            _ = LightningTrainer("cpu", progress=False).device
            assert any("treespec" in message for message in messages())
            assert any("was renamed" in message for message in messages())
