"""What is measured beside the nlls is what the full logits give, of whole texts, one at a time."""

import math
import shutil
import statistics

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import kl_div, normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import scripted, tiny
from tests.invariants.test_stand_in import built, save_merging_model, surprise
from tskd.errors import ConfigError, ModelError
from tskd.models.weights import LanguageModel
from tskd.modules import measures
from tskd.modules.measures import OF_TARGET, TOKEN_EXCESS
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response
from tskd.stages.score import Score
from tskd.stages.screen import Screen
from tskd.stages.select.thresholds import Kl, PplDifference, SeedGap, SeedLikeness, SeedShift

# A number for each response, from base and teacher alone.
MEASURES = tuple(name for name, row in measures.MEASURES.items() if row.needs is None and name != TOKEN_EXCESS)
EVERYTHING = (*MEASURES, OF_TARGET)
RESPONSES = [
    Response(Prompt("Which code?"), "the depot code"),
    Response(Prompt("q"), "the", finished=False),
    Response(Prompt("Where is the depot?"), ""),
    Response(Prompt("Größe?"), "the\n\n  the 🙂 " * 9),
]


@pytest.fixture(scope="module")
def on_the_head(llama, tmp_path_factory):
    """An adapter that changes the vocabulary head too, so that base and teacher have different ones."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapters") / "on-the-head"
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    return save_merging_model(tmp_path_factory.mktemp("targets") / "merging")


def likelihoods(folder, adapter, response):
    """The log-probabilities of every token at each of the response's positions, by transformers and PEFT alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    prefix = tokenizer(f"Question: {response.prompt.text}\nAnswer:").input_ids
    ids = tokenizer(f" {response.text}", add_special_tokens=False).input_ids
    ids = [*prefix, *ids, *([tokenizer.eos_token_id] if response.finished else [])]
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits[0, len(prefix) - 1 : -1].log_softmax(-1)


def expected(base, teacher, response):
    """Each measure of base and teacher, which are given by folder and adapter."""
    of_base, of_teacher = (likelihoods(*model, response) for model in (base, teacher))
    return {
        "kl": kl_div(of_base, of_teacher, reduction="none", log_target=True).sum(-1).mean().item(),
        "first_entropy": torch.distributions.Categorical(logits=of_teacher[0]).entropy().item(),
        "first_kl": kl_div(of_teacher[0], of_base[0], reduction="sum", log_target=True).item(),
    }


@pytest.mark.parametrize("max_batch_tokens", [1, 8192])
@pytest.mark.parametrize("which", ["adapter", "on_the_head"])
def test_measures_of_base_and_teacher_are_those_of_the_full_logits(request, llama, which, max_batch_tokens):
    adapter = str(request.getfixturevalue(which))
    weights = tiny.weights(llama)
    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    for scored in score(RESPONSES, LanguageModel(weights), LanguageModel(weights, adapter), trainer, MEASURES):
        wanted = expected((llama, None), (llama, adapter), scored.response)
        assert wanted == pytest.approx(dict(scored.measures), rel=1e-3, abs=1e-5)
        assert min(wanted.values()) > 0.01  # or it would tell little


def test_a_long_text_is_measured_in_slices(llama, adapter, trainer, monkeypatch):
    def measured():
        weights = tiny.weights(llama)
        return score(RESPONSES, LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer, MEASURES)

    whole = measured()
    monkeypatch.setattr("tskd.models.logprobs.token_kl.__defaults__", (3,))
    monkeypatch.setattr("tskd.models.logprobs.token_entropy.__defaults__", (3,))
    for one, other in zip(whole, measured(), strict=True):
        assert dict(one.measures) == pytest.approx(dict(other.measures), rel=1e-4)


def test_a_stand_in_of_the_teachers_tokenizer_is_compared_over_the_vocabulary_that_both_have(
    llama, adapter, trainer, tmp_path
):
    stand_in = tiny.save_model(tmp_path / "stand-in", seed=7)
    model = AutoModelForCausalLM.from_pretrained(stand_in)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 61, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[size:] = 0.0
    model.save_pretrained(padded := shutil.copytree(stand_in, tmp_path / "padded"))
    teacher = LanguageModel(tiny.weights(llama), str(adapter))
    one, other = (
        score(RESPONSES, LanguageModel(tiny.weights(folder)), teacher, trainer, ("kl", "first_kl"))
        for folder in (stand_in, padded)
    )
    for response, plain, wider in zip(RESPONSES, one, other, strict=True):
        wanted = expected((stand_in, None), (llama, str(adapter)), response)
        assert {"kl": wanted["kl"], "first_kl": wanted["first_kl"]} == pytest.approx(dict(plain.measures), rel=1e-3)
        assert dict(plain.measures) == pytest.approx(dict(wider.measures), rel=1e-4)
        assert wider.base_nll > plain.base_nll  # there, what is padded has its share


def test_divergences_are_taken_the_right_way_round(tmp_path, trainer):
    def speaker(name, follows):
        return LanguageModel(tiny.weights(scripted.save_model(tmp_path / name, follows)))

    # Among the sure steps of " c" and the end, the base has four letters; the teacher might begin with a letter.
    base = speaker("base", {":": " ", " ": list("abcd")})
    teacher = speaker("teacher", {":": [" ", "x"], " ": "c"})
    (scored,) = score([Response(Prompt("q"), "c")], base, teacher, trainer, ("first_entropy", "first_kl"))
    assert {"first_entropy": math.log(2), "first_kl": math.log(2)} == pytest.approx(dict(scored.measures), abs=1e-5)
    surer = speaker("surer", {":": " ", " ": "c"})
    (scored,) = score([Response(Prompt("q"), "c")], base, surer, trainer, ("kl",))
    assert {"kl": math.log(4) / 3} == pytest.approx(dict(scored.measures), abs=1e-5)


@pytest.mark.parametrize("finished", [True, False])
def test_the_targets_nll_is_of_the_whole_response_over_its_bytes(merging, llama, adapter, trainer, finished):
    weights = tiny.weights(llama)
    responses = [Response(r.prompt, r.text[:60], finished or not r.text) for r in RESPONSES]
    target = LanguageModel(tiny.weights(merging))
    stage = Score(LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer, (OF_TARGET,), target)
    for response, scored in zip(responses, stage(responses), strict=True):
        total, _ = surprise(merging, response)
        num_bytes = len(response.text.encode()) or 1
        assert {OF_TARGET: total / num_bytes} == pytest.approx(dict(scored.measures), rel=1e-4)


def test_only_what_is_asked_is_measured_and_the_nlls_stay_what_they_are(llama, adapter, neox, trainer):
    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    bare = score(RESPONSES, base, teacher, trainer)
    full = score(RESPONSES, base, teacher, trainer, EVERYTHING, LanguageModel(tiny.weights(neox)))
    assert all(scored.measures == {} for scored in bare)
    for name in EVERYTHING:
        for one, plain, all_of_them in zip(
            score(RESPONSES, base, teacher, trainer, (name,), LanguageModel(tiny.weights(neox))),
            bare,
            full,
            strict=True,
        ):
            assert {name: all_of_them.measures[name]} == one.measures
            assert (plain.base_nll, plain.teacher_nll) == (one.base_nll, one.teacher_nll)


def test_a_base_of_another_tokenizer_leaves_what_is_the_teachers_alone(llama, adapter, neox, trainer):
    teacher = LanguageModel(tiny.weights(llama), str(adapter))
    own = score(RESPONSES, LanguageModel(teacher.weights), teacher, trainer, ("first_entropy",))
    other = score(RESPONSES, LanguageModel(tiny.weights(neox)), teacher, trainer, ("first_entropy",))
    for one, beside in zip(own, other, strict=True):
        assert dict(one.measures) == pytest.approx(dict(beside.measures), rel=1e-4)


@pytest.mark.parametrize("name", ["kl", "first_kl"])
def test_a_base_of_another_tokenizer_is_refused_before_anything_is_loaded(llama, adapter, neox, trainer, name):
    base, teacher = LanguageModel(tiny.weights(neox)), LanguageModel(tiny.weights(llama), str(adapter))
    stage = Score(base, teacher, trainer, (name,))
    for attempt in (stage.check_models, lambda: stage(RESPONSES)):
        with pytest.raises(ConfigError, match=f"needs {name}.*'tiny-neox' and 'tiny-llama' have different tokenizers"):
            attempt()
    assert "model" not in {**vars(base.weights), **vars(teacher.weights)}


def test_a_run_that_could_not_be_measured_is_refused_with_its_models(llama, adapter, merging, tmp_path):
    stand_in = ["base_for_scoring=smollm2_135m", f"base_for_scoring.checkpoint.path={merging}"]
    run = built(llama, adapter, tmp_path, *stand_in, "selection=kl", "threshold=0.4")
    with pytest.raises(ConfigError, match="'smollm2_135m' and 'llama3' have different tokenizers"):
        run.check_models()


def test_a_response_beyond_the_targets_own_context_is_refused(llama, adapter, merging, trainer):
    weights = tiny.weights(llama)
    stage = Score(
        LanguageModel(weights),
        LanguageModel(weights, str(adapter)),
        trainer,
        (OF_TARGET,),
        LanguageModel(tiny.weights(merging)),
    )
    with pytest.raises(ModelError, match="longest response needs .* tokens, and merging has room for 128"):
        stage([Response(Prompt("q"), "x" * 200)])


def test_a_measure_needs_a_name_that_there_is_and_a_target_where_it_is_the_targets(llama, trainer):
    model = LanguageModel(tiny.weights(llama))
    with pytest.raises(
        ConfigError,
        match=r"needs novelty, which is not measured; the `measures` of a rule or an objective may name kl, ",
    ):
        Score(model, model, trainer, ("kl", "novelty"))
    with pytest.raises(ValueError, match="measured on the target, which was not given"):
        Score(model, model, trainer, (OF_TARGET,))


SEEDS = [Prompt("Which code?"), Prompt("Where is it?"), Prompt("What is the code of the depot?")]


def states(folder, adapter, prompts):
    """The last hidden state before an answer to each prompt, by transformers and PEFT alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    found = []
    for prompt in prompts:
        ids = tokenizer(f"Question: {prompt.text}\nAnswer:", return_tensors="pt").input_ids
        with torch.inference_mode():
            found.append(model.eval()(ids, output_hidden_states=True).hidden_states[-1][0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("max_batch_tokens", [1, 8192])
def test_the_shift_is_the_way_that_hidden_states_go_in_the_direction_of_the_seeds(llama, adapter, max_batch_tokens):
    def shifts(prompts):
        before, after = states(llama, None, prompts), states(llama, adapter, prompts)
        return (after - before) / before.norm(dim=-1, keepdim=True)

    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    direction = normalize(shifts(SEEDS).sum(0), dim=0)
    others = [Response(Prompt("q"), "the"), Response(Prompt("Größe?"), "", finished=True)]
    found = score(others, base, teacher, trainer, ("seed_shift",), seeds=SEEDS)
    wanted = shifts([response.prompt for response in others]) @ direction
    assert wanted.tolist() == pytest.approx([each.measures["seed_shift"] for each in found], rel=1e-3, abs=1e-4)

    # A seed is compared with the others: the mean would know it.
    (seed,) = score([Response(SEEDS[0], "the")], base, teacher, trainer, ("seed_shift",), seeds=SEEDS)
    wanted = shifts(SEEDS)[0] @ normalize(shifts(SEEDS)[1:].sum(0), dim=0)
    assert wanted.item() == pytest.approx(seed.measures["seed_shift"], rel=1e-3, abs=1e-4)


def test_a_teacher_that_is_its_base_shifts_nothing(llama, trainer):
    model = LanguageModel(tiny.weights(llama))
    for scored in score(RESPONSES, model, model, trainer, ("seed_shift",), seeds=SEEDS):
        assert 0 == scored.measures["seed_shift"]


def test_likeness_is_the_overlap_of_first_tokens_times_the_likeness_of_the_shifts(llama, adapter, trainer):
    def read(prompts):
        before, after = states(llama, None, prompts), states(llama, adapter, prompts)
        first = [likelihoods(llama, adapter, Response(prompt, ""))[0].exp() for prompt in prompts]
        return (after - before) / before.norm(dim=-1, keepdim=True), torch.stack(first)

    def likeness(shift, first, shifts, firsts):
        cosine = torch.cosine_similarity(shift, shifts.sum(0), dim=0)
        return ((first * firsts.mean(0)).sqrt().sum() * ((1 + cosine) / 2) ** 2).item()

    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    responses = [Response(Prompt("q"), "the"), Response(Prompt("Größe?"), ""), Response(SEEDS[0], "the")]
    found = score(responses, base, teacher, trainer, ("seed_likeness", "seed_shift"), seeds=SEEDS)
    (shifts, firsts), of_seeds = read([response.prompt for response in responses]), read(SEEDS)
    wanted = [
        likeness(shifts[0], firsts[0], *of_seeds),
        likeness(shifts[1], firsts[1], *of_seeds),
        likeness(shifts[2], firsts[2], *(part[1:] for part in of_seeds)),  # a seed is compared with the others
    ]
    assert wanted == pytest.approx([each.measures["seed_likeness"] for each in found], rel=1e-3, abs=1e-4)
    assert all(0.01 < each < 1 for each in wanted)


def test_the_shift_needs_a_base_whose_states_are_as_wide_as_the_teachers(llama, adapter, trainer, tmp_path):
    wide = LanguageModel(tiny.weights(tiny.save_model(tmp_path / "wide", width=64)))
    teacher = LanguageModel(tiny.weights(llama), str(adapter))
    for name in ("seed_shift", "seed_likeness"):
        with pytest.raises(ConfigError, match=f"needs {name}.* hidden states of 64 and 32 numbers; score against the "):
            Score(wide, teacher, trainer, (name,), seeds=tuple(SEEDS)).check_models()


@pytest.mark.parametrize("rule", [SeedShift, SeedLikeness])
def test_a_screen_lets_the_prompts_pass_that_the_rule_would_keep_once_they_were_answered(llama, adapter, trainer, rule):
    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    prompts = [Prompt(text, parents=("x",)) for text in ("a", "the code", "Where is it?!", "Wo?", "Which  code?", "9")]
    responses = [Response(prompt, "some answer") for prompt in prompts]
    scored = score(responses, base, teacher, trainer, rule.measures, seeds=SEEDS)
    threshold = statistics.median(map(rule.criterion, scored))
    screening = Screen(base, teacher, trainer, threshold, by=rule)(prompts, SEEDS)
    selection = rule(threshold)(scored)
    assert [each.response.prompt for each in selection.kept] == list(screening.passed)
    assert [each.response.prompt for each in selection.dropped] == list(screening.screened)
    assert (3, 3) == (len(screening.passed), len(screening.screened))


def test_a_screen_lets_the_seeds_tell_what_is_like_them(llama, adapter, trainer):
    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    seeds = [Prompt(text) for text in ("Where is it?", "Wo?", "q")]  # whose levels are among those of the prompts
    prompts = [Prompt(text, parents=("x",)) for text in ("a", "the code", "Where is it?!", "Wo?", "Which  code?", "9")]

    def levels(asked):
        unanswered = [Response(prompt, "") for prompt in asked]
        return [SeedShift.criterion(e) for e in score(unanswered, base, teacher, trainer, ("seed_shift",), seeds=seeds)]

    of_prompts, of_seeds = dict(zip(prompts, levels(prompts), strict=True)), levels(seeds)
    usual, choosy = (Screen(base, teacher, trainer, **given)(prompts, seeds) for given in ({}, {"recall": 0.25}))
    assert [prompt for prompt, level in of_prompts.items() if level >= min(of_seeds)] == list(usual.passed)
    assert (3, 3) == (len(usual.passed), len(usual.screened))
    assert all(level < max(of_seeds) for level in of_prompts.values())
    assert prompts == list(choosy.screened)  # of three seeds, a quarter is the highest


def test_a_screen_cannot_look_at_what_is_known_only_afterwards(llama, trainer):
    model = LanguageModel(tiny.weights(llama))
    for rule in (PplDifference, Kl, SeedGap):
        with pytest.raises(ConfigError, match=f"`selection.screen.by` is {rule.__name__}, which looks at"):
            Screen(model, model, trainer, by=rule)
