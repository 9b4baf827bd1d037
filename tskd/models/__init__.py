"""A network, and text into it."""

from tskd.moved import attributes_of

__getattr__ = attributes_of(__name__)  # names that were here when this was one file
