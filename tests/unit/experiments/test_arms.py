"""The arms: each is one method, and between two of them nothing differs but what is under test."""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests import tiny
from tskd import experiment
from tskd.config import hydra_plugins, saved
from tskd.errors import ConfigError
from tskd.models.probes import different_shapes
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.records import Prompt, Question, Response, Scored
from tskd.stages.answer import Gold
from tskd.stages.expand import Private
from tskd.stages.train import Replay, TrainLora
from tskd.stages.writers import LocalWriter
from tskd.tasks.atlas import Atlas

CONF = Path(hydra_plugins.folder())
ARMS = sorted(file.stem for file in (CONF / "experiment" / "arms").glob("*.yaml"))
OF_REAL_PROMPTS = {"refresh", "original_data"}
SYNTHETIC = [arm for arm in ARMS if arm not in OF_REAL_PROMPTS]
TRAINED = [arm for arm in ARMS if arm != "diff_vector"]
BUDGET, EPOCHS = 12, 2
SMALL = [
    *("expansion.num_drafts=24", f"selection.keep={BUDGET}", f"task.epochs={EPOCHS}", "trainer.accelerator=cpu"),
    *("trainer.progress=false", "tracking.mode=disabled", f"allow={__name__}", f"task._target_={__name__}.SmallAtlas"),
]
REAL_PAIR = ["base=smollm2_135m", "teacher=finetuned", "target=gemma3_270m", "task=bbh", "task.subset=navigate"]


@dataclass(frozen=True)
class SmallAtlas(Atlas):
    """A few of the questions, to be quick."""

    def questions(self):
        return super().questions()[:3]

    def examples(self):
        return super().examples()[:30]


@cache
def composed(arm, *overrides):
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return saved.resolved(compose("config", [f"experiment=arms/{arm}", *overrides]))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """An arm, run with the others' store: its folder, how often prompts were written, what its epochs had."""
    place = tmp_path_factory.mktemp("arms")

    @cache
    def ran(arm):
        wrote, epochs = [], []
        write, learn = LocalWriter.write, TrainLora.learn

        def counting_write(writer, *given, **named):
            wrote.append(writer)
            return write(writer, *given, **named)

        def counting_learn(stage, responses, path, *given):
            if path.name == "adapter":  # and not the discriminator's
                epochs.append((len(responses), stage.lora.epochs, stage.lora.batch_size))
            return learn(stage, responses, path, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalWriter, "write", counting_write)
            patch.setattr(TrainLora, "learn", counting_learn)
            same_shape = ["target=atlas_llama"] if arm == "diff_vector" else []
            cfg = composed(arm, *SMALL, *same_shape, f"store={place / 'store'}")
            experiment.job(cfg, place / arm, "arms", "run")
        return place / arm, len(wrote), epochs

    return ran


def texts(folder, name):
    lines = (folder / "iteration_0" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_nothing_but_what_is_under_test(arm):
    """By dotted name, what it sets otherwise than the arm `all`."""
    under_test = {
        "all": set(),
        "seeds_only": {"selection.of"},
        "random": {"selection.of"},
        "ppl_difference": {"selection.of"},
        "recommended": {"selection.of", "threshold"},
        "seed_shift": {"selection.of", "threshold"},
        "discriminator": {"selection.of", "threshold"},
        "titok": {"selection.of", "training.objective"},
        "refresh": {"expansion"},
        "original_data": {"expansion", "answer"},
        "diff_vector": {"training._target_"},
    }
    for pair in ([], REAL_PAIR):
        mine, other = composed(arm, *pair), composed("all", *pair)
        found = {key for key in mine if mine[key] != other[key]}
        for group in {"selection", "training"} & found:
            found |= {f"{group}.{key}" for key in mine[group] if mine[group][key] != other[group].get(key)}
        assert under_test[arm] == found - {"selection", "training"}


def test_an_arm_can_be_put_on_the_pair_of_another_experiment():
    hydra_plugins.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = saved.resolved(compose("config", ["experiment=[smollm2_to_gemma3_bbh,arms/titok]"]))
    assert ("smollm2_135m", "gemma3_270m") == tuple(cfg[model]["checkpoint"]["name"] for model in ("base", "target"))
    assert composed("titok")["selection"] == cfg["selection"]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_to_its_result(arm, ran):
    folder, _, _ = ran(arm)
    assert (folder / "iteration_0" / "adapter" / "adapter_model.safetensors").is_file()
    assert "eval/accuracy" in result(folder)
    assert 1 == result(folder)["iterations"]


def test_all_arms_of_synthetic_prompts_share_them_and_their_answers_which_are_made_once(ran):
    runs = {arm: ran(arm) for arm in SYNTHETIC if arm != "diff_vector"}
    for name in ("prompts", "responses"):
        assert 1 == len({json.dumps(texts(folder, name)) for folder, _, _ in runs.values()})
    # Of those that came after the first, the discriminator alone had prompts written: its own synthetic ones.
    assert 2 == sum(wrote for _, wrote, _ in runs.values())


@pytest.mark.parametrize("arm", TRAINED)
def test_all_arms_have_the_same_budget_of_examples_and_take_the_same_steps(arm, ran):
    folder, _, epochs = ran(arm)
    kept = result(folder)["train/examples"]
    assert kept == len(texts(folder, "kept"))
    assert kept == (8 if arm == "seeds_only" else BUDGET)
    steps = [repeats * math.ceil(size / batch) for size, repeats, batch in epochs]
    assert steps in ([], [EPOCHS * math.ceil(BUDGET / 8)])  # none where the store had the very same training
    assert EPOCHS * BUDGET < result(folder)["cost/trained_tokens"]


def test_chance_is_no_filter_where_the_paper_s_rule_keeps_more_than_the_budget(ran):
    assert texts(ran("all")[0], "kept") == texts(ran("random")[0], "kept")


def test_the_real_prompts_are_the_private_ones_with_the_teacher_s_answers_or_their_own(ran):
    private = {question.prompt.text: question.answer for question in SmallAtlas().examples()}
    seeds = {seed.text for seed in SmallAtlas().seed_prompts()}
    for arm in OF_REAL_PROMPTS:
        asked = {prompt["text"] for prompt in texts(ran(arm)[0], "prompts")}
        assert asked <= private.keys() - seeds
    for kept in texts(ran("original_data")[0], "kept"):
        assert private[kept["response"]["prompt"]["text"]] == kept["response"]["text"]
    assert all(kept["response"]["tokens"] > 0 for kept in texts(ran("refresh")[0], "kept"))


def test_a_diff_vector_is_the_teachers_adapter_and_trains_nothing(ran):
    folder, _, epochs = ran("diff_vector")
    adapter = (folder / "iteration_0" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter == (CONF.parent / "tskd" / "zoo" / "atlas" / "teacher" / "adapter_model.safetensors").read_bytes()
    done = result(folder)
    assert ([], 0, 0, None) == (epochs, done["cost/trained_tokens"], done["train/examples"], done["train/loss"])
    assert done["eval/teacher_accuracy"] == done["eval/accuracy"]  # the target is the base


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "'atlas_neox' differs from 'atlas_llama': .* of their weights do, .* first"),
        (["target=atlas_llama", "teacher=full", "teacher.checkpoint.path=zoo://atlas/llama"], "is a whole model"),
    ],
)
def test_a_diff_vector_that_cannot_be_added_is_refused_before_anything_is_loaded(
    tmp_path, overrides, said, monkeypatch
):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    made = experiment.build(composed("diff_vector", *SMALL, *overrides), tmp_path)
    with pytest.raises(ConfigError, match=said) as error:
        made.check_models()
    assert "\n" not in str(error.value)


def test_shapes_are_compared_by_name_and_embeddings_are_left_aside(llama, neox, tmp_path):
    wide = tiny.save_model(tmp_path / "wide", width=64)
    assert "" == different_shapes(tiny.weights(llama), tiny.weights(tiny.save_model(tmp_path / "other", seed=3)))
    assert "layers.0" in different_shapes(tiny.weights(llama), tiny.weights(wide))
    assert "None" in different_shapes(tiny.weights(llama), tiny.weights(neox))
    deeper = tiny.save_model(tmp_path / "deeper", layers=3)
    assert "layers.2" in different_shapes(tiny.weights(llama), tiny.weights(deeper))


@pytest.mark.parametrize("arm", ["discriminator", "refresh", "original_data"])
def test_an_arm_that_needs_the_private_data_is_refused_where_a_task_has_none(tmp_path, arm):
    (tmp_path / "seeds.txt").write_text("a?\nb?\n")
    files = ["task=files", f"task.seeds={tmp_path / 'seeds.txt'}"]
    with pytest.raises(ConfigError, match="the teacher's private data, and Files has none; name its file") as error:
        experiment.build(composed(arm, *files), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arm", ["discriminator", "refresh", "original_data"])
def test_an_arm_that_needs_the_private_data_takes_a_users_own(tmp_path, arm):
    (tmp_path / "seeds.txt").write_text("a?\nb?\n")
    (tmp_path / "own.jsonl").write_text('{"prompt": "c?", "answer": "1"}\n{"prompt": "d?", "answer": "2"}\n')
    files = [f"task.seeds={tmp_path / 'seeds.txt'}", f"task.private={tmp_path / 'own.jsonl'}"]
    stages = experiment.build(composed(arm, "task=files", *files), tmp_path).stages
    if arm == "discriminator":
        assert ([Prompt("c?"), Prompt("d?")], "own") == (stages.score.judge.private, stages.score.judge.dataset)
        return
    new = stages.expand([], [], 0).prompts
    assert [Prompt("c?"), Prompt("d?")] == list(new)
    if arm == "original_data":
        assert ["1", "2"] == [response.text for response in stages.answer(new)]


def test_answers_are_taken_only_from_examples_that_have_some():
    with pytest.raises(ConfigError, match="`answer=gold` takes .* and none of the 1 has one"):
        Gold([Question(Prompt("q"), None)])


def test_a_discriminator_needs_an_expansion_that_writes(tmp_path):
    with pytest.raises(ConfigError, match="learns from synthetic prompts too, and Private writes none"):
        experiment.build(composed("discriminator", "expansion=private"), tmp_path)


@pytest.mark.parametrize("wrong", ["0", "many", "1.5"])
def test_what_is_no_size_of_an_epoch_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="`training.fill_epoch_to` is"):
        experiment.build(composed("all", f"training.fill_epoch_to={wrong}"), tmp_path)


PRIVATE = [Question(Prompt(f"question {i}"), f"answer {i}") for i in range(9)]


def test_private_prompts_are_given_once_in_their_order_and_count_as_given():
    expand = Private(PRIVATE, seed=0, num_drafts=4)
    seen = [Prompt("Question  3")]
    first = expand([], seen, 0).prompts
    second = expand([], [*seen, *first], 1).prompts
    assert (4, 4) == (len(first), len(second))
    order = [question.prompt.text for question in PRIVATE]
    assert [sorted(part, key=order.index) for part in ([p.text for p in first], [p.text for p in second])] == [
        [prompt.text for prompt in part] for part in (first, second)
    ]
    assert set(order) - {"question 3"} == {prompt.text for prompt in (*first, *second)}
    assert all(prompt.is_seed for prompt in first)
    assert first != Private(PRIVATE, seed=1, num_drafts=4)([], seen, 0).prompts


def test_gold_answers_are_the_splits_own_and_what_has_none_is_left_out():
    asked = [PRIVATE[4].prompt, Prompt("another"), PRIVATE[0].prompt]
    assert ["answer 4", "answer 0"] == [response.text for response in Gold(PRIVATE)(asked)]


def test_a_small_corpus_is_repeated_in_an_epoch_and_counts_its_own_examples(neox, tmp_path, trainer):
    corpus = [Scored(Response(Prompt(text), "a"), 1.0, 0.5, 2) for text in ("one", "two", "three")]
    lora = LoraSettings(rank=2, epochs=1, batch_size=2)
    stage = TrainLora(LanguageModel(tiny.weights(neox)), trainer, tmp_path, 0, lora, Replay("none"), fill_epoch_to=7)
    assert [*corpus, *corpus, corpus[0]] == stage.epoch(corpus)
    assert [*corpus, *corpus, *corpus] == stage.epoch(corpus * 3)
    adapter = stage(corpus, [], 0)
    assert (3, 7 * len(" a ")) == (adapter.num_examples, adapter.trained_tokens)
