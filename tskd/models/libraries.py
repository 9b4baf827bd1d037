"""Quiet the libraries that load models."""

import logging
import warnings


def quiet_libraries() -> None:
    """Silence what transformers, PEFT and bitsandbytes print while a model is loaded.

    Called for each load: a caller may have restored the warning filters since.
    """
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # a bar for each load, over in a moment, between the lines that matter
    set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line for each layer of each pass
    # PEFT reads a transformers attribute that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    # `check_adapter` checks both names before anything is loaded.
    warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*was renamed.*")
    # On saving, PEFT looks the base up on the hub, which need not know its name; no vocabulary is changed here.
    warnings.filterwarnings("ignore", message=".*will assume that the vocabulary was not modified.*")
