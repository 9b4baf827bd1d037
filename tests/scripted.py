"""Models whose every next byte is written down: what a stage makes of a text can be foretold, and the model is real."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import tiny

END = "</s>"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
CHAT_WITH_REQUEST = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"


def save_model(folder: Path, follows: Mapping[str, str | list[str]], *, chat_template: str | None = None) -> Path:
    """A Llama that after byte ``k`` writes one of ``follows[k]``, each as likely, and ends after any other byte.

    Its layers add nothing, so that the head sees the last byte alone, as a one-hot vector.
    """
    tokenizer = tiny.byte_tokenizer("<s>", END)
    tokenizer.chat_template = chat_template
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size + size % 2,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
    )
    head = torch.zeros(size, size + size % 2)
    head[tokenizer.eos_token_id] = 1.0
    for before, after in follows.items():
        column = _token(tokenizer, before)
        head[:, column] = 0.0
        for text in [after] if isinstance(after, str) else after:
            head[_token(tokenizer, text), column] = 1.0
    layer = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(*head.shape))
        model.lm_head.weight.copy_(head * 4)  # times the norm's sqrt(width): one choice outweighs all others by e^60
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _token(tokenizer, text: str) -> int:
    if text == END:
        return tokenizer.eos_token_id
    (token,) = tokenizer(text, add_special_tokens=False).input_ids
    return token
