"""TuneShift-KD: move what a fine-tuned language model knows into a different pre-trained model."""

from tskd import moved

__version__ = "0.1.0"
moved.install()
