"""TuneShift-KD: move what a fine-tuned language model knows into a different pre-trained model."""

__version__ = "0.1.0"
