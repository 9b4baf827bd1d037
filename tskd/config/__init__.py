"""Hydra and OmegaConf, here only: from a configuration to a run."""
