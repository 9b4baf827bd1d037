"""What is learnt under each objective is what its formula says, however it is computed."""

import json
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import scripted, tiny
from tests.invariants.test_measures import likelihoods
from tests.invariants.test_memory import out_of_memory_above
from tests.invariants.test_stand_in import built, save_merging_model
from tests.unit.config.test_schema import built as built_atlas
from tests.unit.storage.test_result_cache import Counting
from tskd.errors import ConfigError, ModelError
from tskd.models.alignment import aligned, token_ends
from tskd.models.encoding import encode_response
from tskd.models.weights import LanguageModel
from tskd.modules import finetuner, objectives
from tskd.modules.finetuner import Finetuner, finetune
from tskd.modules.lora import LoraSettings
from tskd.modules.measures import TOKEN_EXCESS
from tskd.modules.objectives import SoftLabels, TokenWeighted
from tskd.modules.scorer import score
from tskd.modules.trainer import LightningTrainer
from tskd.records import Prompt, Response, Scored
from tskd.stages.train import Replay, TrainLora
from tskd.storage import atomic_files
from tskd.storage.result_cache import Store

RESPONSES = [
    Response(Prompt("Which code?"), "the depot code"),
    Response(Prompt("q"), "the", finished=False),
    Response(Prompt("Where is the depot?"), ""),
    Response(Prompt("Größe?"), "the\n\n  the 🙂 depot"),
    Response(Prompt("Which?"), "  a question: the Answer"),
]
SETTINGS = LoraSettings(rank=4, epochs=2, batch_size=3, learning_rate=1e-3, replay_weight=1.0)


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    return save_merging_model(tmp_path_factory.mktemp("targets") / "merging")


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    return save_merging_model(tmp_path_factory.mktemp("targets") / "chatting", scripted.CHAT_WITH_REQUEST)


@pytest.fixture
def teacher(llama, adapter):
    return LanguageModel(tiny.weights(llama), str(adapter))


@pytest.fixture
def corpus(teacher, trainer):
    return score(RESPONSES, LanguageModel(teacher.weights), teacher, trainer, (TOKEN_EXCESS,))


def encoded(target):
    return [encode_response(target, r.prompt, r.text, r.finished) for r in RESPONSES]


def test_the_smallest_groups_end_where_a_token_of_each_ends():
    # the | dep ot | 🙂 as four bytes | end   beside   t he | depot | 🙂 | end
    assert [([0], [0, 1]), ([1, 2], [2]), ([3, 4, 5, 6], [3]), ([7], [4])] == aligned(
        [3, 6, 8, 9, 9, 9, 9, 10], [1, 3, 8, 9, 10]
    )
    assert [([0, 1], [0, 1])] == aligned([2, 5], [3, 5])
    assert [([0], [0])] == aligned([1, 4], [1, 2, 3])  # beyond the last common end


@pytest.mark.parametrize("kind", ["llama", "merging", "chatting"])
def test_tokens_end_in_the_text_and_every_token_of_every_tokenizer_is_in_one_group(request, neox, kind):
    target, other = (LanguageModel(tiny.weights(folder)) for folder in (request.getfixturevalue(kind), neox))
    for response, sequence in zip(RESPONSES, encoded(target), strict=True):
        ends = token_ends(target, response)
        assert sequence.num_targets == len(ends)
        assert len(response.text) + response.finished == max(ends)
        groups = aligned(token_ends(other, response), ends)
        assert list(range(len(ends))) == [token for _, ours in groups for token in ours]
        assert all(theirs for theirs, _ in groups)


def test_the_excess_of_each_token_is_the_ratio_of_its_full_likelihoods(llama, adapter, corpus):
    for example in corpus:
        tokens = encode_response(LanguageModel(tiny.weights(llama)), example.response.prompt, *_text(example))
        of_base, of_teacher = (likelihoods(llama, each, example.response) for each in (None, str(adapter)))
        labels = torch.tensor(tokens.ids[tokens.first_target :])[:, None]
        expected = (of_teacher - of_base).gather(1, labels)[:, 0].tolist()
        assert expected == pytest.approx(list(example.token_excess), abs=2e-4)
        mean = sum(example.token_excess) / example.tokens
        assert example.base_nll - example.teacher_nll == pytest.approx(mean, abs=2e-4)


def _text(example):
    return example.response.text, example.response.finished


def test_scores_with_and_without_an_excess_are_read_as_they_were_written(corpus, tmp_path):
    atomic_files.write_lines(tmp_path / "new", corpus)
    assert corpus == atomic_files.read_lines(Scored, tmp_path / "new")
    old = asdict(corpus[0])
    del old["token_excess"]
    (tmp_path / "old").write_text(json.dumps(old) + "\n")
    assert [replace(corpus[0], token_excess=())] == atomic_files.read_lines(Scored, tmp_path / "old")


def test_a_target_token_has_the_mean_excess_of_the_teachers_tokens_beside_it(merging, teacher, corpus, trainer):
    example = corpus[0]  # " the depot code" and the end: 15 bytes and an end, of which the target has fewer
    target = LanguageModel(tiny.weights(merging))
    loss = TokenWeighted()([example], target, teacher, trainer)
    ends = token_ends(target, example.response)
    assert len(ends) < example.tokens
    starts = [-1, *ends[:-1]]
    for excess, start, end in zip(loss.excess[0].tolist(), starts, ends, strict=True):
        beside = [e for at, e in enumerate(example.token_excess) if start < at <= end]
        assert sum(beside) / len(beside) == pytest.approx(excess, abs=1e-5)


def loss_and_gradient(loss, hidden, part, batch, lengths, head, labels):
    """``loss`` of the ``part`` of given hidden states (one tensor for each example), and its gradient."""
    leaves = [each.clone().requires_grad_() for each in hidden]
    joined = torch.cat([leaves[i] for i in part])
    nll = torch.nn.functional.cross_entropy(head(joined), torch.cat([labels[i] for i in part]), reduction="none")
    value = loss(nll, joined, head, part, batch)
    value.backward()
    return value.item(), [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


OBJECTIVES = {
    "token_weighted": TokenWeighted(0.5),
    "soft_labels": SoftLabels(weight=2.0, top=8),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_parts_contribute_adds_up_even_after_a_journey(merging, teacher, corpus, trainer, name):
    target = LanguageModel(tiny.weights(merging))
    loss = OBJECTIVES[name](corpus, target, teacher, trainer)
    lengths = [example.num_targets for example in encoded(target)]
    torch.manual_seed(0)
    head = torch.nn.Linear(6, target.weights.config.vocab_size, bias=False).requires_grad_(False)
    hidden, labels = [torch.randn(n, 6) for n in lengths], [torch.randint(0, 99, (n,)) for n in lengths]
    given = ([4, 0, 2, 3], lengths, head, labels)
    whole, gradient = loss_and_gradient(loss, hidden, [4, 0, 2, 3], *given)
    parts = [loss_and_gradient(pickle.loads(pickle.dumps(loss)), hidden, part, *given) for part in ([4], [2, 0], [3])]
    assert whole == pytest.approx(sum(value for value, _ in parts), rel=1e-5)
    for i, expected in enumerate(gradient):
        torch.testing.assert_close(expected, sum(of_part[i] for _, of_part in parts))


def test_only_the_tokens_with_the_highest_excess_are_learnt():
    loss = objectives.TopTokens(0.5, [torch.tensor([0.0, 3.0, 1.0]), torch.tensor([2.0]), torch.tensor([9.0])])
    nll = torch.tensor([1.0, 10.0, 100.0, 1000.0], requires_grad=True)
    value = loss(nll, torch.empty(4, 2), torch.nn.Identity(), [0, 1], [0, 1])
    value.backward()
    assert (10 + 1000) / 2 == value.item()
    assert [0, 0.5, 0, 0.5] == nll.grad.tolist()
    tied = objectives.TopTokens(0.1, [torch.tensor([1.0, 0.0, 1.0])])
    assert 2.0 == tied(torch.tensor([1.0, 5.0, 3.0]), torch.empty(3, 2), torch.nn.Identity(), [0], [0]).item()


def sorted_distance(one, other):
    width = max(one.shape[-1], other.shape[-1])
    one, other = (
        torch.nn.functional.pad(p.sort(-1, descending=True).values, (0, width - p.shape[-1])) for p in (one, other)
    )
    return (one - other).abs().sum(-1)


@pytest.mark.parametrize("max_batch_tokens", [1, 8192])
def test_soft_labels_are_the_distance_to_the_teachers_full_probabilities_where_texts_meet(
    llama, adapter, merging, teacher, corpus, max_batch_tokens
):
    trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
    target = LanguageModel(tiny.weights(merging))
    loss = SoftLabels(weight=3.0, top=10**6)(corpus, target, teacher, trainer)
    target.weights.fresh_adapter(SETTINGS.lora_config(), seed=0)
    module = Finetuner(target.weights, encoded(target), [], SETTINGS, "k", 10**6, 10**6, None, loss=loss)
    everything = range(len(RESPONSES))
    got, mean_nll = module.loss_of(everything, everything)
    distances = []
    for response in RESPONSES:
        theirs, ours = (likelihoods(*of, response).exp() for of in ((llama, str(adapter)), (merging, None)))
        for of_teacher, of_target in aligned(token_ends(teacher, response), token_ends(target, response)):
            distances.append(sorted_distance(ours[of_target[0]], theirs[of_teacher[0]]))
    mean = torch.stack(distances).mean().item()
    assert mean > 0.05  # or it would tell little
    assert got.item() == pytest.approx(mean_nll + 3 * mean, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_where_tokens_are_one_to_one_the_distance_is_that_of_trl():
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer")
    config = gold.GOLDConfig(uld_token_merge_strategy="bayesian", bf16=False, report_to=[])
    torch.manual_seed(0)
    ours, theirs = torch.randn(1, 6, 11), torch.randn(1, 6, 17)
    labels = torch.tensor([[-100, -100, 3, 4, 5, 6]])
    ends = torch.tensor([[[0, 0], [0, 0], [0, 1], [1, 2], [2, 3], [3, 3]]])
    expected = gold.ULDLoss(config)(ours, theirs, labels, labels, labels, labels, ends, ends)  # the end is left out
    reference = objectives.token_top(theirs[0, 1:4], torch.nn.Identity(), 11)
    # Beyond our eleven, TRL compares the teacher's other six with nothing, which is what is left of it.
    got = objectives.token_uld(ours[0, 1:4], reference, torch.nn.Identity()).mean()
    assert expected.item() == pytest.approx(got.item(), rel=1e-5)


def test_fewer_probabilities_are_a_lower_bound_that_grows_with_them():
    torch.manual_seed(1)
    ours, theirs = 3 * torch.randn(5, 40), 2 * torch.randn(5, 60)
    whole = sorted_distance(ours.softmax(-1), theirs.softmax(-1))
    bounds = [
        objectives.token_uld(ours, objectives.token_top(theirs, torch.nn.Identity(), count), torch.nn.Identity())
        for count in (1, 4, 16, 40)
    ]
    for one, more in zip(bounds, [*bounds[1:], whole], strict=True):
        assert (one <= more + 1e-6).all()
    torch.testing.assert_close(bounds[-1], whole)


def trained(target_folder, corpus, teacher, save_to, trainer, objective=None, settings=SETTINGS, **given):
    target = LanguageModel(tiny.weights(target_folder))
    loss = None if objective is None else objective(corpus, target, teacher, trainer)
    finetune(target.weights, encoded(target), settings, trainer, save_to, seed=3, key="k", loss=loss, **given)
    return load_file(save_to / "adapter_model.safetensors")


WAYS = {
    "nll": {},
    **{name: {"objective": objective} for name, objective in OBJECTIVES.items()},
    "dora": {"settings": replace(SETTINGS, use_dora=True)},
    "rslora": {"settings": replace(SETTINGS, use_rslora=True)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("replayed", [0, 2])
def test_an_adapter_is_the_same_in_parts(merging, teacher, corpus, tmp_path, trainer, monkeypatch, way, replayed):
    monkeypatch.setattr(LightningTrainer, "pass_cost", lambda *_: 10**6)
    given = {**WAYS[way], "replay": encoded(LanguageModel(tiny.weights(merging)))[:replayed]}
    whole = trained(merging, corpus, teacher, tmp_path / "whole", trainer, **given)
    bounded = replace(trainer, max_batch_tokens=1)
    by_bound = trained(merging, corpus, teacher, tmp_path / "bound", bounded, **given)
    tried = out_of_memory_above(1, monkeypatch, finetuner, "Finetuner")
    in_halves = trained(merging, corpus, teacher, tmp_path / "halves", trainer, **given)
    assert max(tried) > 1 == min(tried)
    for name in whole:
        torch.testing.assert_close(whole[name], by_bound[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(whole[name], in_halves[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("objective", [TokenWeighted(1.0), SoftLabels(weight=0.0)])
def test_all_tokens_and_no_weight_are_the_plain_nll_to_the_bit(merging, teacher, corpus, tmp_path, trainer, objective):
    plain = trained(merging, corpus, teacher, tmp_path / "plain", trainer)
    other = trained(merging, corpus, teacher, tmp_path / "other", trainer, objective)
    for name in plain:
        assert torch.equal(plain[name], other[name])


@pytest.mark.parametrize("way", [name for name in WAYS if name != "nll"])
def test_each_changes_what_is_learnt(merging, teacher, corpus, tmp_path, trainer, way):
    plain = trained(merging, corpus, teacher, tmp_path / "plain", trainer)
    other = trained(merging, corpus, teacher, tmp_path / "other", trainer, **WAYS[way])
    assert any(name not in plain or not torch.equal(plain[name], value) for name, value in other.items())


def test_rslora_is_lora_of_another_alpha(merging, teacher, corpus, tmp_path, trainer):
    lora, rslora = replace(SETTINGS, alpha=32.0), replace(SETTINGS, alpha=16.0, use_rslora=True)  # 32/4 is 16/√4
    for name, settings in (("lora", lora), ("rslora", rslora)):
        trained(merging, corpus, teacher, tmp_path / name, trainer, settings=settings)
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("lora", "rslora"))
    assert one == other


@pytest.mark.parametrize("setting", ["use_dora", "use_rslora"])
def test_a_tuned_target_speaks_alike_beside_its_base_in_plain_peft_and_merged(
    neox, teacher, corpus, tmp_path, trainer, setting
):
    settings = replace(SETTINGS, learning_rate=5e-2, **{setting: True})
    weights = tiny.weights(neox)
    finetune(weights, encoded(LanguageModel(weights)), settings, trainer, tmp_path / "a", seed=3, key="k")
    ids = torch.arange(2, 30)[None]
    untouched = AutoModelForCausalLM.from_pretrained(neox)(input_ids=ids).logits
    with weights.speaking(None) as model, torch.no_grad():
        assert torch.equal(untouched, model(input_ids=ids).logits)
    with weights.speaking(str(tmp_path / "a")) as model, torch.no_grad():
        tuned = model(input_ids=ids).logits
    assert (tuned - untouched).abs().max() > 0.1
    tiny.weights(neox).check_adapter(str(tmp_path / "a"), same_base=False)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(neox), tmp_path / "a").eval()
    assert torch.equal(tuned, loaded(input_ids=ids).logits)
    torch.testing.assert_close(
        tuned, loaded.merge_and_unload(safe_merge=True)(input_ids=ids).logits, atol=1e-4, rtol=1e-4
    )


def test_an_objective_has_only_its_own_measures_taken(tmp_path):
    for training, measures in (("lora", ()), ("soft_labels", ()), ("token_weighted", (TOKEN_EXCESS,))):
        assert measures == built_atlas(tmp_path, f"training={training}").stages.score.measures
    both = built_atlas(tmp_path, "training=token_weighted", "selection=kl", "threshold=0.4").stages
    assert ("kl", TOKEN_EXCESS) == both.score.measures


def test_an_excess_over_two_tokenizers_is_refused_before_anything_is_loaded(llama, adapter, merging, tmp_path):
    stand_in = ["base_for_scoring=smollm2_135m", f"base_for_scoring.checkpoint.path={merging}"]
    run = built(llama, adapter, tmp_path, *stand_in, "training=token_weighted")
    with pytest.raises(
        ConfigError, match="needs token_excess, .*'smollm2_135m' and 'llama3' have different tokenizers"
    ):
        run.check_models()
    assert not any(model.weights.is_loaded for model in run.models.values())


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_a_tokenizer_that_tells_no_places_is_refused_before_anything_is_loaded(
    neox, teacher, trainer, tmp_path, objective, monkeypatch
):
    target = LanguageModel(tiny.weights(neox))
    stage = TrainLora(target, trainer, tmp_path, 0, SETTINGS, Replay("none"), objective=objective, teacher=teacher)
    stage.check_models()
    monkeypatch.setattr(type(target.tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match="does not tell which characters its tokens cover"):
        stage.check_models()
    assert not target.weights.is_loaded


def test_a_response_that_was_scored_without_excess_is_refused(neox, teacher, corpus, trainer):
    bare = [replace(example, token_excess=()) for example in corpus]
    with pytest.raises(ValueError, match="scored with 0 excesses"):
        TokenWeighted()(bare, LanguageModel(tiny.weights(neox)), teacher, trainer)


@pytest.mark.parametrize("has_objective", [True, False])
def test_with_an_objective_other_scores_are_another_training(tmp_path, has_objective):
    jobs = [Counting(tmp_path / name) for name in ("first", "second")]
    for excess, job in zip(((0.1,), (0.2,)), jobs, strict=True):
        stages = job.stages()
        object.__setattr__(stages.train, "objective", "some" if has_objective else None)
        examples = [Scored(response, 2.0, 1.0, 1, {}, excess) for response in RESPONSES]
        Store(tmp_path / "store").sharing(stages, job.folder).train(examples, [], 0)
    assert (["train"], ["train"] if has_objective else []) == (jobs[0].calls, jobs[1].calls)


def test_an_objective_of_ones_own_is_what_the_docstring_shows(neox, teacher, corpus, trainer, tmp_path, monkeypatch):
    shown = objectives.__doc__.split("say ``my_objectives.py``:\n")[1].split("\nwith ``training.objective=")[0]
    imports = "from dataclasses import dataclass\nimport torch\nfrom tskd.modules.objectives import token_ends\n"
    code = "\n".join(line.removeprefix("    ") for line in shown.splitlines())
    (tmp_path / "my_objectives.py").write_text(imports + code)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("training.objective={_target_:my_objectives.EachAlike}", "allow=my_objectives")
    stage = built_atlas(tmp_path, *own).stages.train
    target = LanguageModel(tiny.weights(neox))
    loss = stage.objective(corpus, target, teacher, trainer)
    values = [torch.full((example.num_targets,), float(i)) for i, example in enumerate(encoded(target))]
    parts = [
        loss(torch.cat([values[i] for i in part]), None, None, part, range(5)).item() for part in ([0, 3], [1, 2, 4])
    ]
    assert sum(parts) == pytest.approx(sum(range(5)) / 5)
