"""What a target has learnt when training is over."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tskd.engines.own import generate
from tskd.errors import ModelError
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.generation import Generation, Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.batches import shuffled
from tskd.modules.finetuner import Finetuner, finetune
from tskd.modules.lora import LoraSettings
from tskd.records import Prompt

PAIRS = {"one": "1", "two": "22", "three": "333"}
SETTINGS = LoraSettings(rank=8, epochs=30, batch_size=3, learning_rate=2e-2)


def examples(weights, pairs=PAIRS, finished=True):
    return [encode_response(LanguageModel(weights), Prompt(q), a, finished) for q, a in pairs.items()]


def bytes_of(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "neox"])  # the latter's end token is its start and pad token too
def test_a_target_learns_to_answer_and_to_end(kind, request, tmp_path, trainer):
    weights = tiny.weights(request.getfixturevalue(kind))
    taught = examples(weights, dict.fromkeys(PAIRS, "42"))
    finetune(weights, taught, SETTINGS, trainer, tmp_path, seed=0, key="k")
    model = LanguageModel(weights, str(tmp_path))
    requests = [Request(encode_prefix(model, model.template.prefix(Prompt(q)))) for q in PAIRS]
    assert [Generation(" 42", True, tokens=4)] * 3 == generate(model, requests, Sampling(8), trainer)


def test_a_target_does_not_learn_to_end_where_the_limit_cut_the_answer(neox, tmp_path, trainer):
    weights = tiny.weights(neox)
    taught = examples(weights, dict.fromkeys(PAIRS, "4444444"), finished=False)
    finetune(weights, taught, SETTINGS, trainer, tmp_path, seed=0, key="k")
    model = LanguageModel(weights, str(tmp_path))
    request = Request(encode_prefix(model, model.template.prefix(Prompt("one"))))
    assert generate(model, [request], Sampling(8), trainer)[0].text == " 4444444"


def forgetting(neox, tmp_path, trainer, **settings):
    """How far a model moves on a text of its own while it learns something else, in nats per token."""
    weights = tiny.weights(neox)
    own = examples(weights, {"something else": "entirely"})
    lora = LoraSettings(rank=4, epochs=10, batch_size=3, learning_rate=1e-2, **settings)
    finetune(weights, examples(weights), lora, trainer, tmp_path, seed=0, key="k", replay=own)
    module = Finetuner(weights, [], own, LoraSettings(replay_weight=1.0), "k", 10**6, 10**6, None)
    with torch.no_grad():
        return module.loss_of([0], [0])[0].item()


def test_replay_holds_the_target_to_what_it_said_before(neox, tmp_path, trainer):
    with_replay, without = (forgetting(neox, tmp_path, trainer, replay_weight=weight) for weight in (10.0, 0.0))
    assert with_replay < 0.3 * without


def test_replay_of_no_weight_changes_nothing(neox, tmp_path, trainer):
    for name in ("none", "weightless"):
        weights = tiny.weights(neox)
        replay = examples(weights)[:1] if name == "weightless" else []
        lora = LoraSettings(rank=2, epochs=2, replay_weight=0.0)
        finetune(weights, examples(weights), lora, trainer, tmp_path / name, seed=0, key="k", replay=replay)
    none, weightless = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("none", "weightless"))
    for name in none:
        torch.testing.assert_close(none[name], weightless[name])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"key": "l"}, {"dropout": 0.5}])
def test_seed_key_and_dropout_each_change_the_adapter(neox, tmp_path, trainer, changed):
    for name, given in (("a", {}), ("b", changed)):
        weights = tiny.weights(neox)
        chosen = {"seed": 0, "key": "k", "dropout": 0.0, **given}
        lora = LoraSettings(rank=2, epochs=2, batch_size=1, dropout=chosen.pop("dropout"))
        finetune(weights, examples(weights), lora, trainer, tmp_path / name, **chosen)
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "b")


def test_dropout_follows_from_the_seed(neox, tmp_path, trainer):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        weights = tiny.weights(neox)
        lora = LoraSettings(rank=2, epochs=2, dropout=0.5)
        finetune(weights, examples(weights), lora, trainer, tmp_path / name, seed=0, key="k")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_training_leaves_the_global_random_numbers_alone(neox, tmp_path, trainer):
    weights = tiny.weights(neox)
    assert weights.model is not None
    state = torch.random.get_rng_state()
    finetune(
        weights, examples(weights), LoraSettings(rank=2, epochs=1, dropout=0.1), trainer, tmp_path, seed=0, key="k"
    )
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_learning_rate_warms_up_and_decays_to_nothing(neox):
    weights = tiny.weights(neox)
    weights.fresh_adapter(LoraSettings(rank=2).lora_config(), seed=0)
    settings = LoraSettings(epochs=20, batch_size=1, warmup=0.1, learning_rate=1.0)
    module = Finetuner(weights, examples(weights)[:1], [], settings, "k", 10**6, 10**6, None)
    schedule = module.configure_optimizers()[1][0]
    rates = []
    for _ in range(20):
        rates += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    assert pytest.approx(rates[:2]) == [0.5, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert pytest.approx(rates[-1]) == 1 / 18
    assert schedule.get_last_lr() == [0.0]


def test_each_epoch_has_each_example_once_in_an_order_of_its_own(neox):
    weights = tiny.weights(neox)
    sequences = examples(weights, {str(n): str(n) for n in range(12)})

    class AtEpoch(Finetuner):
        current_epoch = 0

    module = AtEpoch(weights, sequences, [], LoraSettings(batch_size=5), "k", 10**6, 10**6, None)
    orders = []
    for AtEpoch.current_epoch in (0, 1, 0):
        orders.append([i for batch in module.train_dataloader() for i in batch])
    assert orders[0] == orders[2] != orders[1]
    assert [sorted(order) for order in orders[:2]] == [list(range(12))] * 2


def test_every_batch_has_a_full_batch_of_replay_beside_it(neox):
    weights = tiny.weights(neox)
    sequences = examples(weights, {str(n): str(n) for n in range(7)})
    module = Finetuner(
        weights, sequences, sequences[:2], LoraSettings(batch_size=3, replay_weight=1.0), "k", 10**6, 10**6, None
    )
    batches = list(module.train_dataloader())
    assert [(sum(i < 7 for i in batch), sum(i >= 7 for i in batch)) for batch in batches] == [(3, 3), (3, 3), (1, 3)]


def test_the_loss_is_the_mean_over_the_target_tokens_of_the_last_epoch(neox, tmp_path, trainer):
    weights, steps = tiny.weights(neox), []
    lora = LoraSettings(rank=2, epochs=3, batch_size=2)
    taught = examples(weights)
    loss, _ = finetune(
        weights, taught, lora, trainer, tmp_path, seed=0, key="k", log_step=lambda *step: steps.append(step)
    )
    assert list(range(6)) == [step for step, _ in steps]
    tokens = [sum(taught[i].num_targets for i in batch) for batch in shuffled(len(taught), 2, "k/epoch 2")]
    total = sum(count * value for count, (_, value) in zip(tokens, steps[4:], strict=True))
    assert total / sum(tokens) == pytest.approx(loss)


def test_a_loss_that_is_no_number_stops_the_training_with_advice(neox, tmp_path, trainer):
    weights = tiny.weights(neox)
    with torch.no_grad():
        weights.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(ModelError, match=r"loss became nan at step 0; lower `training.*learning_rate`"):
        finetune(weights, examples(weights), SETTINGS, trainer, tmp_path / "a", seed=0, key="k")
    assert not (tmp_path / "a").exists()


@pytest.fixture
def spoilt():
    """A loss that is no number where the example 2 is in it, and ``seen``, the examples of each part."""
    seen = []

    def spoilt(nll, hidden, head, part, batch):
        seen.append(part)
        return nll.mean() * (math.nan if 2 in part else 1.0)

    return spoilt, seen


def test_an_example_whose_loss_is_no_number_stops_the_training_and_is_named(neox, tmp_path, trainer, spoilt):
    weights = tiny.weights(neox)
    with pytest.raises(ModelError, match=r"because of example 3 of those kept; .*`training.not_finite=drop`"):
        finetune(weights, examples(weights), SETTINGS, trainer, tmp_path / "a", seed=0, key="k", loss=spoilt[0])


def test_an_example_whose_loss_is_no_number_can_be_left_out_and_is_counted(neox, tmp_path, trainer, spoilt, caplog):
    loss, seen = spoilt
    weights = tiny.weights(neox)
    settings = {"trainer": trainer, "seed": 0, "key": "k", "loss": loss, "drop_not_finite": True}
    mean, left_out = finetune(weights, examples(weights), SETTINGS, save_to=tmp_path / "a", **settings)
    assert math.isfinite(mean)
    assert 1 == left_out
    assert 2 == sum(2 in part for part in seen)  # with the others, and then by itself
    assert "example 3 of those kept is no number" in caplog.text
