"""Evaluation in memory gives the numbers of lm-eval's command line, and leaves the model as it was."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fabricated, scripted, tiny
from tskd.errors import ConfigError, ModelError
from tskd.evaluation import lm_harness
from tskd.evaluation.lm_harness import TASKS, HarnessEvaluator
from tskd.models.encoding import TokenSequence, encode_prefix
from tskd.models.weights import LanguageModel, Weights
from tskd.modules import scorer
from tskd.modules.scorer import log_likelihoods
from tskd.modules.trainer import LightningTrainer
from tskd.records import Message
from tskd.tasks.bbh import Bbh
from tskd.tasks.gsm8k import Gsm8k
from tskd.tasks.mmlu import Mmlu

pytest.importorskip("lm_eval")

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA, REAL_MODEL = ROOT.parent / "shared" / "data", os.environ.get("TSKD_SMOLLM2", "")
CHAT = "{{ bos_token }}" + scripted.CHAT_WITH_REQUEST
MAX_NEW_TOKENS = {"bbh": 64, "gsm8k": 400}  # as in the harness's YAML files, which the command line goes by


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fabricated.write_all(tmp_path_factory.mktemp("data"))


def bbh(root, limit=4, **settings):
    return Bbh(root, subset="navigate", limit=limit, **settings)


def mmlu(root, limit=4, **settings):
    return Mmlu(root, subset=fabricated.TWINS[1], limit=limit, **settings)


def evaluator(task, trainer, max_new_tokens=8):
    return HarnessEvaluator(task, task.questions(), trainer, max_new_tokens)


def plain(folder, follows):
    return LanguageModel(tiny.weights(scripted.save_model(folder, follows)))


def chatting(folder, template=CHAT):
    """A tiny random Llama whose tokenizer has a chat template."""
    tiny.save_model(folder)
    tokenizer = tiny.byte_tokenizer("<s>", "</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return LanguageModel(tiny.weights(folder))


# The same numbers


def command_line(model, metadata, out, tasks):
    """What `lm_eval` says of a model's folder: each question's response and whether it is correct, by task."""
    # But for its index of 14,000 tasks of its own, which takes longer than all the rest.
    cli = (
        "from lm_eval.tasks import TaskManager; TaskManager.__init__.__defaults__ = (None, None, False, None); "
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    arguments = ["--model", "hf", "--device", "cpu", "--model_args", f"pretrained={model},dtype=float32"]
    arguments += ["--include_path", str(TASKS), "--tasks", ",".join(tasks), "--metadata", json.dumps(metadata)]
    arguments += ["--apply_chat_template", "--log_samples", "--output_path", str(out)]
    ran = subprocess.run([sys.executable, "-c", cli, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    samples = {}
    for task, rule in tasks.items():
        (file,) = out.glob(f"*/samples_{task}_*.jsonl")
        rows = [row for row in map(json.loads, file.read_text().splitlines()) if row["filter"] == rule]
        samples[task] = [(row["resps"][0][0].strip(), bool(row["exact_match"])) for row in rows]
    return samples


def both_agree(model, root, limit, trainer, tmp_path, subset="navigate"):
    """What both say of BBH and GSM8K, which is the same."""
    metadata = {"root": root, "subset": subset, "limit": limit}
    rules = {"tskd_bbh": "none", "tskd_gsm8k": "flexible-extract"}
    expected = command_line(model.weights.folder, metadata, tmp_path / "out", rules)
    for task in (Bbh(root, subset=subset, limit=limit), Gsm8k(root, limit=limit)):
        graded = evaluator(task, trainer, MAX_NEW_TOKENS[task.name])(model)
        assert [question.prompt.id for question in task.questions()] == [answer.question for answer in graded]
        assert expected[task.harness().name] == [(answer.response, answer.correct) for answer in graded]
    return expected


def test_the_command_line_gives_the_same_answers_and_grades(data, trainer, tmp_path):
    found = both_agree(chatting(tmp_path / "m"), data, 3, trainer, tmp_path)
    assert 6 == len({response for samples in found.values() for response, _ in samples})


def test_the_command_line_finds_the_same_answers_correct(trainer, tmp_path):
    fabricated.write_bbh(tmp_path, "navigate", [{"input": f"Is {i} odd?", "target": "YN"[i % 2]} for i in range(20)])
    for split in ("train", "test"):
        rows = [{"question": f"How many are {split} {i}?", "answer": f"So.\n#### {7 + i % 2}"} for i in range(10)]
        fabricated.write_lines(tmp_path / "gsm8k" / f"{split}.jsonl", rows)
    # One answer to all questions, which is right for about half of either benchmark's.
    follows = {">": "Y", "Y": "\n", "\n": "8"}
    model = LanguageModel(tiny.weights(scripted.save_model(tmp_path / "m", follows, chat_template=CHAT)))
    found = both_agree(model, str(tmp_path), 8, trainer, tmp_path)
    assert {"Y\n8"} == {response for samples in found.values() for response, _ in samples}
    assert all(len({correct for _, correct in samples}) == 2 for samples in found.values())


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real benchmark files in {REAL_DATA}")
@pytest.mark.skipif(not REAL_MODEL, reason="TSKD_SMOLLM2 names no folder with SmolLM2-135M-Instruct")
def test_the_command_line_agrees_on_a_real_model_and_real_questions(trainer, tmp_path):
    model = LanguageModel(tiny.weights(Path(REAL_MODEL)))
    found = both_agree(model, str(REAL_DATA), 6, trainer, tmp_path, subset="boolean_expressions")
    assert 2 == len({correct for _, correct in found["tskd_bbh"]})


@pytest.mark.filterwarnings("default")  # of the harness's own
@pytest.mark.parametrize("max_batch_tokens", [1, 10_000])
def test_likelihoods_are_those_of_the_harness(llama, max_batch_tokens):
    from lm_eval.models.huggingface import HFLM

    model = LanguageModel(tiny.weights(llama))
    # Choices of one token and of several, some after the same context; the first three are read together.
    pairs = [((7, 8, 9), (10,)), ((7, 8, 9), (11,)), ((7, 8, 9), (12,)), ((7, 8, 9), (10, 11)), ((5,), (10, 7, 8))]
    theirs = HFLM(pretrained=model.weights.model, tokenizer=model.tokenizer, max_length=512, batch_size=2)
    expected = theirs._loglikelihood_tokens([(("", ""), [*context], [*choice]) for context, choice in pairs])
    ours = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    found = log_likelihoods(
        model, [TokenSequence((*context, *choice), len(context)) for context, choice in pairs], ours
    )
    assert [likelihood for likelihood, _ in expected] == pytest.approx(found, abs=1e-4)


# What the model reads


@pytest.fixture
def reading(monkeypatch):
    """The token ids that the harness hands to the model: prefixes to go on from, and (prefix, choice) to score."""
    read = []
    generate, score = lm_harness.generate, log_likelihoods

    def spy_on_generation(model, requests, *rest, **settings):
        read.extend(request.ids for request in requests)
        return generate(model, requests, *rest, **settings)

    def spy_on_scoring(model, sequences, *rest):
        read.extend((each.ids[: each.first_target], each.ids[each.first_target :]) for each in sequences)
        return score(model, sequences, *rest)

    monkeypatch.setattr(lm_harness, "generate", spy_on_generation)
    monkeypatch.setattr(scorer, "log_likelihoods", spy_on_scoring)
    return read


@pytest.fixture(params=["plain", "chat", "chat without a start token"])
def model(request, llama, tmp_path):
    if request.param == "plain":
        return LanguageModel(tiny.weights(llama))
    return chatting(tmp_path / "m", CHAT if request.param == "chat" else scripted.CHAT_WITH_REQUEST)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_the_model_reads_the_tokens_of_its_own_template(model, num_fewshot, data, trainer, reading):
    task = bbh(data, num_fewshot=num_fewshot)
    evaluator(task, trainer)(model)
    assert sorted(prefixes(model, task)) == sorted(reading)


def test_a_choice_is_scored_as_the_response_that_it_would_be(model, data, trainer, reading):
    task = mmlu(data, num_fewshot=1)
    evaluator(task, trainer)(model)
    letters = [
        model.tokenizer(model.template.continuation(letter), add_special_tokens=False).input_ids for letter in "ABCD"
    ]
    assert sorted((prefix, tuple(ids)) for prefix in prefixes(model, task) for ids in letters) == sorted(reading)


def prefixes(model, task):
    examples = task.examples()[: task.num_fewshot]
    context = tuple(
        message for e in examples for message in (Message("user", e.prompt.text), Message("assistant", e.answer))
    )
    asked = [dataclasses.replace(question.prompt, context=context) for question in task.questions()]
    return [encode_prefix(model, model.template.prefix(prompt)) for prompt in asked]


def test_a_plain_model_chooses_between_letters_after_a_space(data, trainer, tmp_path):
    graded = evaluator(mmlu(data), trainer)(plain(tmp_path / "m", {":": " ", " ": "B"}))
    assert {"B"} == {answer.response for answer in graded}
    assert [question.answer == "B" for question in mmlu(data).questions()] == [answer.correct for answer in graded]


# The model before and after


def test_the_adapter_speaks_for_the_teacher_alone(llama, adapter, data, trainer):
    weights, ask = tiny.weights(llama), evaluator(bbh(data), trainer)
    base, teacher = ask(LanguageModel(weights)), ask(LanguageModel(weights, str(adapter)))
    assert all(one.response != other.response for one, other in zip(base, teacher, strict=True))
    assert base == ask(LanguageModel(weights))
    assert teacher == ask(LanguageModel(tiny.weights(llama), str(adapter)))


def without_pad_token(folder):
    """A tiny Llama to whose tokenizer the harness has to give a pad token."""
    tiny.save_model(folder)
    tokenizer = tiny.byte_tokenizer("<s>", "</s>")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return tiny.weights(folder)


def state(weights: Weights):
    model, tokenizer = weights.model, weights.tokenizer
    return copy.deepcopy(
        (
            model.generation_config.to_dict(),
            [(name, module.training) for name, module in model.named_modules()],
            [(name, weight, weight.requires_grad) for name, weight in model.state_dict().items()],
            tokenizer.init_kwargs,
            tokenizer.special_tokens_map,
            sorted(tokenizer.get_vocab()),
            tokenizer(["one", "three"]).input_ids,
        )
    )


@pytest.mark.parametrize("make", [bbh, mmlu])
def test_model_and_tokenizer_are_given_back_as_they_were(make, data, trainer, tmp_path):
    weights = without_pad_token(tmp_path / "m")
    assert weights.tokenizer.pad_token is None
    before = state(weights)
    evaluator(make(data), trainer)(LanguageModel(weights))
    assert str(before) == str(state(weights))


def test_they_are_given_back_even_where_the_harness_fails(data, trainer, tmp_path, monkeypatch):
    weights = without_pad_token(tmp_path / "m")
    before = state(weights)
    monkeypatch.setattr(lm_harness, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluator(bbh(data), trainer)(LanguageModel(weights))
    assert str(before) == str(state(weights))


def test_an_answer_ends_with_the_turn_whatever_the_generation_settings_name(data, trainer, tmp_path):
    template = scripted.CHAT_WITH_REQUEST.replace("</s>", "<s>")  # a turn's end that no list of stops has
    follows = {">": "Y", "Y": "<s>", "<s>": "Z", "Z": "Z"}
    model = LanguageModel(tiny.weights(scripted.save_model(tmp_path / "m", follows, chat_template=template)))
    assert {"Y"} == {answer.response for answer in evaluator(bbh(data), trainer)(model)}


@pytest.mark.parametrize("make", [bbh, mmlu])
def test_nothing_is_printed_without_a_progress_bar(make, llama, data, trainer, capfd, caplog):
    caplog.set_level("INFO")
    evaluator(make(data), trainer)(LanguageModel(tiny.weights(llama)))
    assert ("", "") == tuple(capfd.readouterr())
    assert [] == caplog.messages


# What is refused


def test_without_the_harness_the_error_says_what_to_install(data, trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"needs lm-evaluation-harness: pip install 'tskd\[benchmarks\]'") as error:
        evaluator(bbh(data), trainer)
    assert "\n" not in str(error.value)


def test_more_examples_than_there_are_is_an_error_with_both_numbers(data, trainer):
    number = len(bbh(data).examples())
    evaluator(bbh(data, num_fewshot=number), trainer)
    said = f"`task.num_fewshot` is {number + 1}, and the private split of bbh-navigate has {number} examples"
    with pytest.raises(ConfigError, match=said):
        evaluator(bbh(data, num_fewshot=number + 1), trainer)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_a_question_beyond_the_context_is_refused_with_its_examples_and_answer_counted(
    num_fewshot, llama, data, trainer
):
    model, task = LanguageModel(tiny.weights(llama)), bbh(data, limit=1, num_fewshot=num_fewshot)
    (prefix,) = prefixes(model, task)
    room = 512 - len(prefix)
    (graded,) = evaluator(task, trainer, room)(model)
    assert 1 == len(graded.question.split())
    said = rf"with {num_fewshot} examples and {room + 1} new tokens, needs 513 tokens, and tiny-llama has room for 512"
    with pytest.raises(ModelError, match=said):
        evaluator(task, trainer, room + 1)(LanguageModel(tiny.weights(llama)))


@pytest.mark.parametrize("number", [5, 70])
def test_an_answer_has_as_many_tokens_as_were_allowed_whatever_the_yaml_says(number, data, trainer, tmp_path):
    endless = plain(tmp_path / "m", {":": " ", " ": "a", "a": "a"})
    answers = evaluator(bbh(data), trainer, number)(endless)
    assert {"a" * (number - 1)} == {answer.response for answer in answers}  # and the space before them
