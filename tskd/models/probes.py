"""Compare two checkpoints without loading weights: tokenizers and shapes."""

from tskd.models.weights import Weights

# What tokenizers that share a vocabulary may still cut differently: spaces, digits, code, scripts, odd characters.
_PROBES = (
    "",
    "One sentence, and   another;\n\n\ta third isn't  ",
    "def area(r: float) -> float:\n    return 3.14159265 * r**2  # 1234567 8,900\n",
    "Größenwahn, naïve œuvre; мир, 你好世界, こんにちは, مرحبا, नमस्ते 🙂👩‍🚀 ½ № \u200b\xa0",
)


def same_tokenizer(a: Weights, b: Weights) -> bool:
    """Whether ``a`` and ``b`` read any text as the same token ids: one vocabulary, and probes that are cut alike."""
    if a is b:
        return True
    one, other = a.tokenizer, b.tokenizer
    if one.get_vocab() != other.get_vocab() or one.get_added_vocab() != other.get_added_vocab():
        return False
    probes = [*_PROBES, " ".join(one.get_added_vocab())]
    return all(one(probe).input_ids == other(probe).input_ids for probe in probes)


def different_shapes(one: Weights, other: Weights) -> str:
    """In words, the first weight by which the two differ in shape, embeddings aside; empty where none does.

    Loads no weights.
    """
    mine, others = _shapes(one), _shapes(other)
    differing = sorted(name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name))
    if not differing:
        return ""
    first = differing[0]
    return f"{len(differing)} of their weights do, {first} first ({mine.get(first)} and {others.get(first)})"


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(weights.config)
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    return {name: tuple(each.shape) for name, each in model.named_parameters() if id(each) not in ends}
