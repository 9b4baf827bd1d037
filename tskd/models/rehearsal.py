"""Stand-ins for a rehearsal: random two-layer models, each of the architecture of the checkpoint that it replaces.

``scale=rehearsal`` puts them in the place of the real checkpoints. A rehearsal proves that everything in a command fits
together; its numbers mean nothing.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

from tskd.errors import ConfigError
from tskd.models.libraries import quiet_libraries
from tskd.storage import atomic_files

log = logging.getLogger(__name__)
FOLDER = Path("outputs", ".rehearsal")
TOKENIZERS = Path(__file__).parents[1] / "zoo" / "atlas"
CHAT = (
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
EVERY = 8  # one token in so many ends a text: what a random model writes would else run on to every length limit
POSITIONS = 2**15  # a small vocabulary makes five exemplars of a long task thousands of tokens


def stand_in(architecture: str, name: str) -> str:
    """The folder of a random model of ``architecture`` that stands in for the checkpoint ``name``, made once.

    Raises ``ConfigError`` where transformers has no such architecture.
    """
    log.info("Rehearsal: a random %s stands in for %s. It proves the wiring, not the result.", architecture, name)
    folder = FOLDER / f"{name}-{architecture}"
    if not folder.is_dir():
        with atomic_files.room_beside(folder) as room:
            made = Path(room, folder.name)
            _make(architecture, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16), made)
            atomic_files.put(made, folder, keep=True)
    return str(folder)


def _make(architecture: str, seed: int, folder: Path) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()

    if architecture not in CONFIG_MAPPING:
        raise ConfigError(
            f"`checkpoint.architecture` is {architecture!r}, which transformers does not know; a rehearsal needs it."
        )
    # Families have tokenizers of their own, and so do their stand-ins: texts cross from one vocabulary to another.
    tokenizer: Any = AutoTokenizer.from_pretrained(TOKENIZERS / ("llama" if architecture == "llama" else "neox"))
    tokenizer.chat_template = CHAT
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = list(range(tokenizer.eos_token_id, len(tokenizer), EVERY))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
