"""Base and teacher share weights, and nothing that one does shows in the other."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import tiny
from tskd.engines.own import generate
from tskd.models.encoding import encode_prefix, encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.finetuner import finetune
from tskd.modules.lora import LoraSettings
from tskd.modules.scorer import score
from tskd.records import Prompt, Response

RESPONSES = [Response(Prompt("q" * n), "answer " * (n % 4 + 1), finished=n % 3 > 0) for n in range(1, 10)]


def test_the_base_that_shares_the_teachers_weights_scores_as_one_of_its_own_to_the_bit(llama, adapter, trainer):
    weights, separate = tiny.weights(llama), LanguageModel(tiny.weights(llama))
    shared = score(RESPONSES, LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer)
    alone = score(RESPONSES, separate, separate, trainer)
    assert [example.base_nll for example in alone] == [example.base_nll for example in shared]


def test_the_teacher_scores_as_peft_loads_it(llama, adapter, trainer):
    weights = tiny.weights(llama)
    teacher = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapter).eval()
    for example in score(RESPONSES, LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer):
        said = example.response
        sequence = encode_response(LanguageModel(weights), said.prompt, said.text, said.finished)
        labels = torch.tensor([[-100] * sequence.first_target + list(sequence.ids[sequence.first_target :])])
        with torch.no_grad():
            expected = teacher(input_ids=torch.tensor([sequence.ids]), labels=labels).loss.item()
        assert expected == pytest.approx(example.teacher_nll, rel=1e-5)


def test_the_order_of_the_work_changes_no_text_and_no_score(llama, adapter, trainer):
    def written(model):
        requests = [Request(encode_prefix(model, text), text) for text in ("a", "longer text")]
        return generate(model, requests, Sampling(8, temperature=1.0), trainer)

    def work(weights):
        base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
        return {
            "base": lambda: written(base),
            "teacher": lambda: written(teacher),
            "score": lambda: score(RESPONSES, base, teacher, trainer),
        }

    straight, backwards = (work(tiny.weights(llama)) for _ in range(2))
    done = {name: job() for name, job in straight.items()}
    assert done == {name: backwards[name]() for name in reversed(done)}
    assert done["base"] != done["teacher"]


def test_training_after_scoring_on_the_same_weights_is_training_on_fresh_ones(llama, adapter, trainer, tmp_path):
    used, fresh = tiny.weights(llama), tiny.weights(llama)
    score(RESPONSES, LanguageModel(used), LanguageModel(used, str(adapter)), trainer)
    for name, weights in (("used", used), ("fresh", fresh)):
        examples = [encode_response(LanguageModel(weights), Prompt("q"), "a", finished=True)]
        finetune(
            weights,
            examples,
            LoraSettings(rank=2, epochs=2, replay_weight=1.0),
            trainer,
            tmp_path / name,
            seed=0,
            key="k",
            replay=examples,
        )
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("used", "fresh"))
    assert first == second
