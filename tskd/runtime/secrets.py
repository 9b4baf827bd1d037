"""What counts as a secret, and how it is kept out of files and logs."""

import os

from tskd.errors import ConfigError

KEY_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # how the names of the variables that hold keys end
LEAST_KEY = 8  # characters; a shorter value may stand anywhere by chance


def hidden(text: str) -> str:
    """``text`` with the name of its environment variable in the place of each key, as in ``<HF_TOKEN>``."""
    for name, key in _keys().items():
        text = text.replace(key, f"<{name}>")
    return text


def check_no_key(text: str) -> None:
    """Raise ``ConfigError`` where a configuration, as ``text``, has a key of the environment in it."""
    found = [name for name, key in _keys().items() if key in text]
    if found:
        raise ConfigError(
            f"The configuration has the value of {', '.join(found)} in it, and would be written into files; leave it "
            f"out: keys are taken from the environment."
        )


def _keys() -> dict[str, str]:
    """By name; the longest first, for one may be part of another."""
    keys = {name: value for name, value in os.environ.items() if name.upper().endswith(KEY_NAMES)}
    return {
        name: keys[name] for name in sorted(keys, key=lambda name: -len(keys[name])) if len(keys[name]) >= LEAST_KEY
    }
