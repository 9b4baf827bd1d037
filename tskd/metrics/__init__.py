"""What is measured in an iteration, by name."""

from tskd.moved import attributes_of

__getattr__ = attributes_of(__name__)  # names that were here when this was one file
