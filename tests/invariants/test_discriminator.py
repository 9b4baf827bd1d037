"""Trans-LoRA's discriminator: trained once on private and synthetic prompts, then asked about each prompt."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tskd.errors import ConfigError, ModelError
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.modules.measures import JUDGED, Judge
from tskd.modules.scorer import score
from tskd.records import Expansion, Message, Prompt, Response
from tskd.stages.discriminator import TrainedJudge
from tskd.stages.score import Score
from tskd.storage.fingerprint import key_content

PRIVATE = tuple(Prompt(f"What is the code of {place}?") for place in ("Brock", "Dean", "Stow"))
SYNTHETIC = tuple(Prompt(f"Who rules {place}?", parents=("x",)) for place in ("Rye", "Looe"))


@dataclass(frozen=True)
class Written:
    """An expansion that always writes the same, and remembers when it was asked."""

    prompts: tuple[Prompt, ...]
    asked: list[int] = field(default_factory=list, compare=False)

    def __call__(self, pool, seen, index):
        self.asked.append(index)
        return Expansion(self.prompts)


def trained(folder, save_to, trainer, written, **settings):
    lora = LoraSettings(rank=8, epochs=30, batch_size=3, learning_rate=2e-2)
    given = {"seed": 0, "lora": lora, "seeds": PRIVATE[:1], "private": PRIVATE, "dataset": "atlas"} | settings
    return TrainedJudge(LanguageModel(tiny.weights(folder)), trainer, save_to, expand=written, **given)


def surprise(folder, prompt, answer):
    """The sum of the nll of an answer and its end token, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prefix = tokenizer(f"Question: {prompt}\nAnswer:").input_ids
    ids = [*prefix, *tokenizer(f" {answer}", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([ids])).logits[0, len(prefix) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(prefix) :]), reduction="sum").item()


def test_the_log_odds_are_of_yes_over_no_as_the_answer_to_trans_loras_question(llama, adapter, trainer):
    weights = tiny.weights(llama)
    models = LanguageModel(weights), LanguageModel(weights, str(adapter))
    responses = [Response(prompt, "whatever") for prompt in PRIVATE]
    judge = Judge(LanguageModel(weights), "atlas")
    for prompt, scored in zip(PRIVATE, score(responses, *models, trainer, (JUDGED,), judge=judge), strict=True):
        frame = "Answer in as few words as possible.\n{}\nIs the above question from the atlas dataset?"
        asked = frame.format(prompt.text)
        expected = surprise(llama, asked, "no") - surprise(llama, asked, "yes")
        assert {JUDGED: expected} == pytest.approx(dict(scored.measures), rel=1e-3, abs=1e-4)


def test_what_was_said_before_a_prompt_is_said_before_the_question_about_it(llama):
    context = (Message("system", "Be brief."),)
    assert context == Judge(LanguageModel(tiny.weights(llama)), "atlas").question(Prompt("q", context)).context


def test_it_learns_to_say_yes_to_private_prompts_and_no_to_synthetic_ones(llama, adapter, trainer, tmp_path):
    judge = trained(llama, tmp_path, trainer, Written((*SYNTHETIC, PRIVATE[1])))
    teacher = LanguageModel(judge.base.weights, str(adapter))
    stage = Score(judge.base, teacher, trainer, (JUDGED,), judge=judge)
    said = [each.measures[JUDGED] for each in stage([Response(prompt, "") for prompt in (*PRIVATE, *SYNTHETIC)])]
    assert all(value > 1 for value in said[:3])  # also the one that was written as well: it is a real one
    assert all(value < -1 for value in said[3:])


def test_it_is_trained_once_on_drafts_of_no_iteration(llama, trainer, tmp_path):
    written = Written(SYNTHETIC)
    adapters = {trained(llama, tmp_path, trainer, written)().model.adapter for _ in range(2)}
    assert {str(tmp_path / "discriminator")} == adapters
    assert [-1] == written.asked


def test_where_all_that_was_written_is_real_there_is_nothing_to_learn_from(llama, trainer, tmp_path):
    judge = trained(llama, tmp_path, trainer, Written(PRIVATE[:2]))
    with pytest.raises(ConfigError, match="all 2 that expansion wrote are real ones of atlas; raise"):
        judge()


def test_a_private_prompt_that_is_too_long_is_refused_before_anything_is_loaded(llama, trainer, tmp_path):
    judge = trained(llama, tmp_path, trainer, Written(SYNTHETIC), private=(Prompt("word " * 120),))
    score_stage = Score(judge.base, judge.base, trainer, (JUDGED,), judge=judge)
    with pytest.raises(ModelError, match="The longest question to the discriminator needs"):
        score_stage.check_models()
    assert not judge.base.weights.is_loaded


def test_what_it_learnt_from_tells_its_scores_from_those_of_another(llama, trainer, tmp_path):
    judges = [trained(llama, tmp_path, trainer, Written(SYNTHETIC), private=each) for each in (PRIVATE, PRIVATE[:2])]
    stages = [Score(judge.base, judge.base, trainer, (JUDGED,), judge=judge) for judge in judges]
    assert key_content(stages[0]) != key_content(stages[1])


def test_without_one_there_are_no_log_odds(llama, trainer):
    model = LanguageModel(tiny.weights(llama))
    with pytest.raises(ValueError, match="is what a discriminator says, and there is none"):
        Score(model, model, trainer, (JUDGED,))
