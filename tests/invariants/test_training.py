"""The loss is Hugging Face's, the pre-trained weights stay, and the adapter is PEFT's."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel
from tskd.modules.batches import pad_right
from tskd.modules.finetuner import Finetuner, finetune
from tskd.modules.lora import LoraSettings
from tskd.records import Prompt

PAIRS = [("one", "1"), ("two and more", "22"), ("three", "three three")]
SETTINGS = LoraSettings(rank=4, epochs=3, batch_size=2, learning_rate=1e-2)


def examples(weights):
    return [encode_response(LanguageModel(weights), Prompt(q), a, finished=True) for q, a in PAIRS]


def trained(folder, save_to, trainer, **settings):
    weights = tiny.weights(folder)
    loss, _ = finetune(weights, examples(weights), SETTINGS, trainer, save_to, seed=3, key="k", **settings)
    return weights, loss


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_loss_and_gradient_are_those_of_the_plain_loss(kind, request):
    folder = request.getfixturevalue(kind)
    weights = tiny.weights(folder)
    sequences = examples(weights)
    network = weights.fresh_adapter(SETTINGS.lora_config(), seed=0)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    module = Finetuner(weights, sequences, [], SETTINGS, "k", 10**6, 10**6, None)
    batch = pad_right(sequences, module.pad)
    everything = range(len(sequences))
    hidden_loss = module.loss_of(everything, everything)[0]
    hidden_loss.backward()
    mine = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.rows, batch.columns + 1] = batch.labels
    plain = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    plain.backward()
    torch.testing.assert_close(plain, hidden_loss)
    assert mine
    for name, parameter in network.named_parameters():
        if name in mine:
            torch.testing.assert_close(parameter.grad, mine[name], atol=1e-5, rtol=1e-3)


def test_gradient_checkpointing_changes_no_adapter(neox, tmp_path, trainer):
    weights = tiny.weights(neox)
    saved = []
    for checkpointing in (False, True):
        settings = replace(SETTINGS, gradient_checkpointing=checkpointing)
        finetune(weights, examples(weights), settings, trainer, tmp_path / str(checkpointing), seed=3, key="k")
        assert not any(getattr(module, "gradient_checkpointing", False) for module in weights.model.modules())
        saved.append(load_file(tmp_path / str(checkpointing) / "adapter_model.safetensors"))
    for name in saved[0]:
        torch.testing.assert_close(saved[0][name], saved[1][name])


def test_training_leaves_the_pretrained_weights_alone(neox, tmp_path, trainer):
    weights, _ = trained(neox, tmp_path / "a", trainer)
    ids = torch.arange(2, 30)[None]
    with weights.speaking(None) as model:
        assert torch.equal(
            AutoModelForCausalLM.from_pretrained(neox)(input_ids=ids).logits, model(input_ids=ids).logits
        )


def test_the_saved_adapter_is_the_trained_one_for_peft_itself(neox, tmp_path, trainer):
    weights, _ = trained(neox, tmp_path / "a", trainer)
    ids = torch.arange(2, 30)[None]
    with weights.speaking(str(tmp_path / "a")) as model:
        expected = model(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(neox), tmp_path / "a").eval()
    torch.testing.assert_close(expected, loaded(input_ids=ids).logits)


def test_the_same_seed_gives_the_same_adapter(neox, tmp_path, trainer):
    files = []
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 100)
        trained(neox, tmp_path / name, trainer)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_training_lowers_the_loss_and_reports_every_step(neox, tmp_path, trainer):
    steps = []
    _, loss = trained(neox, tmp_path / "a", trainer, log_step=lambda step, value: steps.append(value))
    assert len(steps) == 6
    assert loss < steps[0]


def test_replay_costs_nothing_before_the_first_step(neox):
    weights = tiny.weights(neox)
    weights.fresh_adapter(LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), seed=0)
    module = Finetuner(weights, examples(weights), examples(weights), SETTINGS, "k", 10**6, 10**6, None)
    loss, nll = module.loss_of(range(6), range(6))
    assert pytest.approx(loss.item()) == nll


def test_a_fresh_adapter_replaces_the_one_before(neox, tmp_path, trainer):
    weights, _ = trained(neox, tmp_path / "a", trainer)
    finetune(weights, examples(weights), SETTINGS, trainer, tmp_path / "b", seed=3, key="k")
    first, second = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "ab")
    assert first == second


def test_plain_peft_initialises_the_same_modules(neox):
    mine = tiny.weights(neox).fresh_adapter(SETTINGS.lora_config(), seed=0)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(neox), SETTINGS.lora_config())
    assert {n for n, _ in theirs.named_parameters()} == {n for n, _ in mine.named_parameters()}
