"""A network's pass in two halves, the decoder and the vocabulary head, and what is changed of a network on loading.

The head is the larger half of many a small model, and most positions do not need it.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tskd.errors import ModelError


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the decoder hands to the vocabulary head: ids and mask (B, T) give (B, T, H)."""
    decoder = _causal_lm(model).base_model
    output = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    # A model that is spread over devices ends on the last of them; the masks that pick from this are with the ids.
    return output.last_hidden_state.to(input_ids.device)  # type: ignore[no-any-return]


def vocabulary_head(model: Any, hidden: Tensor) -> Tensor:
    """Logits for hidden states (N, H), as the model's own forward pass computes them: (N, V)."""
    causal_lm = _causal_lm(model)
    logits = causal_lm.get_output_embeddings()(hidden).to(hidden.device)
    config = causal_lm.config.get_text_config()
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def fused_nll(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) in nats, one for each row, by a kernel that never writes logits down: (N, H) and (N,) give (N,).

    Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009), Apple's, with the gradient unfiltered and of ``hidden``
    alone. Raises ``ModelError`` where the head is not a matrix in 16 bits. Not run: it needs CUDA.
    """
    from cut_cross_entropy import linear_cross_entropy  # which imports triton

    causal_lm = _causal_lm(model)
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    if not isinstance(head, nn.Linear) or head.bias is not None or head.weight.dtype.itemsize != 2:
        raise ModelError(
            f"The vocabulary head of {type(causal_lm).__name__} has a bias, an adapter or {head.weight.dtype} weights, "
            f"which Cut Cross-Entropy does not take; set `training.lora.fused_loss=false`."
        )
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    inputs = (hidden * scale).to(head.weight.dtype), head.weight.to(hidden.device), labels
    nll: Tensor = linear_cross_entropy(*inputs, softcap=cap, reduction="none", filter_eps=None)
    return nll.float()


def make_head_input_contiguous(model: nn.Module) -> None:
    """Let the vocabulary head read its input from one piece of memory."""
    # On a CPU, F.linear on a non-contiguous 3-D input with a frozen weight copies the weight once per batch row:
    # at a vocabulary of 262k, a generation step of 32 rows takes 150 times longer and 10 GB more. A single row passes
    # for contiguous with the strides of the text that it was cut from, and is copied for too; flat, it has its own.
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, -2).contiguous().view(args[0].shape), *args[1:]))


def check_logits(model: Any) -> None:
    """Raise ``ModelError`` where the two halves of a pass give other logits than the whole."""
    # An architecture may scale its logits in a way of its own; every nll would be wrong, and nothing would tell.
    ids = torch.tensor([[0, 1, 2]], device=model.device)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        got = vocabulary_head(model, hidden_states(model, ids, torch.ones_like(ids))[0])
    if not torch.allclose(expected.float(), got.float(), rtol=0.05, atol=0.05):
        raise ModelError(
            f"{type(model).__name__} computes its logits in a way that tskd does not know; it cannot be used."
        )


def shard(model: Any) -> None:
    """Leave a part of every layer in each process; layers are put together for a pass, in all processes at once.

    FSDP2's ``fully_shard`` (Zhao et al. 2023, arXiv 2304.11277). The embeddings, the last norm and the head stay whole:
    the head is then called as often as a process likes. LoRA matrices, which come later, are whole too.
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cpu") if accelerator is None else accelerator
    decoder = model.base_model
    depth = model.config.get_text_config().num_hidden_layers
    layers = next(m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:  # moves it to the device, of which it then leaves a part
        fully_shard(layer, mesh=mesh)
    whole = set(model.parameters()) - set(layers.parameters())
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    model.to(device)


def _causal_lm(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
