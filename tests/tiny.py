"""Two-layer random models with a byte tokenizer, saved as the hub would: real parts, made in a second."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import Weights


def save_model(folder: Path, kind: str = "llama", *, seed: int = 0, layers: int = 2, width: int = 32) -> Path:
    """A random Llama with separate start and end tokens, or a GPT-NeoX whose end token is start and pad too."""
    start, end = ("<s>", "</s>") if kind == "llama" else ("<end>", "<end>")
    tokenizer = byte_tokenizer(start, end)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,  # large enough that greedy choices are not near-ties
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**common)) if kind == "llama" else GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer(start: str, end: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([start, end, *alphabet]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, vocabulary[start])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end)


def save_adapter(base: Path, folder: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """A LoRA adapter that changes what its base says: both factors are random."""
    torch.manual_seed(seed)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base), LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def weights(folder: Path) -> Weights:
    return Weights(Checkpoint(folder.name, str(folder), dtype="float32"))
