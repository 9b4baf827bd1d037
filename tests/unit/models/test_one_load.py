"""Models are loaded once in a process, and make room where memory is short."""

from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.unit.config.test_schema import built
from tskd.engines.own import generate
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_prefix
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel, Weights, keep_only, weights_of
from tskd.modules.trainer import LightningTrainer


@pytest.fixture
def loaded(monkeypatch):
    """The folders from which models are loaded, one entry for each time."""
    folders = []
    real = AutoModelForCausalLM.from_pretrained

    def load(folder, **settings):
        folders.append(folder)
        return real(folder, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    keep_only([])
    return folders


def used(trainer, *models):
    for model in models:
        generate(model, [Request(encode_prefix(model, "a"))], Sampling(1), trainer)


def test_two_jobs_of_a_process_share_what_they_both_use(tmp_path, loaded):
    first, second = (built(tmp_path, f"threshold={threshold}") for threshold in (0.5, 1.0))
    for run in (first, second):
        used(run.trainer, run.base, run.teacher, run.target)
    assert len(loaded) == 2
    assert first.base.weights is second.base.weights
    assert first.target.weights is second.target.weights


def test_what_the_next_job_does_not_use_is_released(tmp_path, loaded):
    first = built(tmp_path)
    used(first.trainer, first.base, first.target)
    second = built(tmp_path, "target=atlas_llama")
    assert first.base.weights.is_loaded
    assert not first.target.weights.is_loaded
    assert second.target.weights is second.base.weights


def test_a_folder_with_other_content_is_another_model(tmp_path, loaded):
    checkpoint = Checkpoint("m", str(tiny.save_model(tmp_path / "m", seed=0)))
    first = weights_of(checkpoint)
    assert weights_of(checkpoint) is first
    tiny.save_model(tmp_path / "m", seed=1)
    assert weights_of(checkpoint) is not first


@pytest.mark.parametrize(
    ("keep", "free", "kept"),
    [(None, 10**12, True), (None, 10, False), (True, 10, True), (False, 10**12, False)],
    ids=["room for both", "room for one", "kept whatever the room", "never kept"],
)
def test_a_model_makes_room_for_the_next(llama, neox, loaded, monkeypatch, keep, free, kept):
    monkeypatch.setattr("tskd.modules.trainer.available_memory", lambda device: free)
    trainer = LightningTrainer("cpu", progress=False, keep_models=keep)
    first, second = LanguageModel(tiny.weights(llama)), LanguageModel(tiny.weights(neox))
    used(trainer, first, second)
    assert first.weights.is_loaded is kept
    assert second.weights.is_loaded
    used(trainer, second)
    assert len(loaded) == 2


def test_a_model_that_was_released_says_the_same_again(llama, adapter, trainer):
    model = LanguageModel(tiny.weights(llama), str(adapter))
    requests = [Request(encode_prefix(model, "hello"))]
    before = generate(model, requests, Sampling(8), trainer)
    model.weights.release()
    assert before == generate(model, requests, Sampling(8), trainer)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_size_of_weights_is_told_before_they_are_loaded(llama, dtype):
    weights = Weights(replace(tiny.weights(llama).checkpoint, dtype=dtype))
    said = weights.size.weights
    assert not weights.is_loaded
    in_memory = sum(p.numel() * p.element_size() for p in weights.model.parameters())
    assert said == pytest.approx(in_memory, rel=0.05)
