"""Teachers made here: which folder is whose, whole or not at all; and what expansion must leave out."""

import dataclasses
import json
import shutil
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests import fabricated, scripted, tiny
from tskd.config import hydra_plugins
from tskd.config.build import build
from tskd.errors import ConfigError, ModelError, RunFolderError
from tskd.metrics.iteration import iteration_metrics
from tskd.models.checkpoint import Checkpoint
from tskd.models.weights import LanguageModel
from tskd.records import Graded, Iteration, Selection
from tskd.stages.teacher import Finetuned, TeacherLora, TeacherReplay, check_base
from tskd.storage import atomic_files
from tskd.storage.fingerprint import hash_weights
from tskd.tasks.bbh import Bbh

LORA = TeacherLora(rank=2, epochs=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fabricated.write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def task(data):
    return Bbh(data, subset="navigate", limit=4)


@pytest.fixture
def base(llama):
    return LanguageModel(tiny.weights(llama))


def recipe(tmp_path, **settings):
    return Finetuned(**{"lora": LORA, "folder": str(tmp_path / "teachers"), **settings})


# Which folder is whose

CHECKPOINT = Checkpoint("tiny", "some/tiny")


def name(checkpoint=CHECKPOINT, task=None, **settings):
    return Finetuned(**{"lora": LORA, **settings}).folder_for(checkpoint, task).name


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"lora": replace(LORA, epochs=2)},
        {"lora": replace(LORA, target_modules=["q_proj"])},
        {"replay": TeacherReplay("free")},
    ],
)
def test_another_setting_makes_another_teacher(settings, task):
    assert name(task=task) != name(task=task, **settings)


@pytest.mark.parametrize(
    "base",
    [{"path": "other/tiny"}, {"revision": "a"}, {"dtype": "bfloat16"}, {"template": "plain"}, {"quantization": "8bit"}],
)
def test_another_base_makes_another_teacher(base, task):
    assert name(task=task) != name(replace(CHECKPOINT, **base), task)


@pytest.mark.parametrize("other", [{"num_private": 3}, {"subset": "snarks"}, {"subset": ("navigate", "snarks")}])
def test_other_data_make_another_teacher(other, task):
    assert name(task=task) != name(task=replace(task, **other))


def test_the_same_data_elsewhere_make_the_same_teacher(task, data, tmp_path):
    assert name(task=task) == name(task=replace(task, root=str(shutil.copytree(data, tmp_path / "copy"))))


def test_one_changed_answer_makes_another_teacher(task, tmp_path):
    rows = fabricated.bbh("navigate")
    private = task.examples()[0].prompt.text
    changed = [{**row, "target": "Maybe"} if row["input"] == private else row for row in rows]
    fabricated.write_bbh(tmp_path, "navigate", changed)
    assert name(task=task) != name(task=replace(task, root=str(tmp_path)))


@pytest.mark.parametrize("other", [{"limit": 2}, {"num_fewshot": 1}, {"num_seeds": 2}])
def test_how_it_is_evaluated_makes_no_other_teacher(other, task):
    assert name(task=task) == name(task=replace(task, **other))


def test_where_a_base_is_put_makes_no_other_teacher(task):
    assert name(task=task) == name(replace(CHECKPOINT, device_map="auto", licence="MIT", gated=True), task)


def test_a_folders_name_says_base_and_task(task):
    assert name(task=task).startswith("tiny-bbh-navigate-")


# Whole or not at all


@dataclasses.dataclass
class Evaluation:
    """Half of the base's answers are right and all of the teacher's. ``then`` is done when the teacher is asked."""

    questions: list
    then: object = lambda: None

    def __call__(self, model):
        if model.adapter is not None:
            self.then()
        right = [model.adapter is not None or index % 2 == 0 for index in range(len(self.questions))]
        return [Graded(q.prompt.id, "x", *pair) for q, *pair in zip(self.questions, right, strict=True)]


def make(recipe, base, task, trainer, then=lambda: None):
    folder = recipe.folder_for(base.weights.checkpoint, task)
    return recipe.make(base, task, Evaluation(task.questions(), then), trainer, folder), folder


def test_a_made_teacher_is_an_adapter_with_a_card(base, llama, task, trainer, tmp_path):
    card, folder = make(recipe(tmp_path), base, task, trainer)
    assert recipe(tmp_path).is_made(folder)
    assert json.loads((folder / "card.json").read_text()) == card
    assert (card["base"]["path"], card["base"]["revision"], card["task"]) == (str(llama), None, "bbh-navigate")
    assert (card["num_examples"], card["num_held_out"]) == (12, 4)
    assert (card["base_accuracy"], card["teacher_accuracy"]) == (0.5, 1.0)
    readme = (folder / "README.md").read_text()
    assert "| base | 0.500 | 0.289 |\n| teacher | 1.000 | 0.000 |" in readme
    assert task.note in readme
    answers = {voice: atomic_files.read_lines(Graded, folder / f"{voice}.jsonl") for voice in ("base", "teacher")}
    assert (2, 4) == tuple(sum(answer.correct for answer in graded) for graded in answers.values())
    base.weights.check_adapter(str(folder))


def test_a_teacher_of_weights_that_the_base_no_longer_has_is_told(llama, task, trainer, tmp_path):
    place = shutil.copytree(llama, tmp_path / "base")
    _, folder = make(recipe(tmp_path), LanguageModel(tiny.weights(place)), task, trainer)
    check_base(str(folder), tiny.weights(place))
    tiny.save_model(place, seed=1)  # fine-tuned further, say
    hash_weights.cache_clear()
    with pytest.raises(ModelError, match="was made of other weights than .*base holds now; move it away") as error:
        check_base(str(folder), tiny.weights(place))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("card", [{}, {"base": "tiny"}, {"base": {"path": "base"}}])
def test_a_card_that_does_not_say_the_weights_is_believed(llama, tmp_path, card):
    (tmp_path / "card.json").write_text(json.dumps(card))
    check_base(str(tmp_path), tiny.weights(llama))
    check_base("owner/adapter", tiny.weights(llama))


def logits(model):
    with model.speaking() as network, torch.inference_mode():
        return network(torch.arange(2, 30)[None]).logits


def test_what_is_in_memory_is_what_was_saved(base, llama, task, trainer, tmp_path):
    untouched = logits(base)
    _, folder = make(recipe(tmp_path), base, task, trainer)
    teacher = logits(LanguageModel(base.weights, str(folder)))
    assert torch.equal(teacher, logits(LanguageModel(tiny.weights(llama), str(folder))))
    assert torch.equal(untouched, logits(base))
    assert not torch.equal(untouched, teacher)


def test_the_recipe_decides_the_adapter(llama, task, trainer, tmp_path):
    made = {}
    for number, seed in enumerate((0, 0, 1)):
        _, folder = make(recipe(tmp_path / str(number), seed=seed), LanguageModel(tiny.weights(llama)), task, trainer)
        made[number] = (folder / "adapter_model.safetensors").read_bytes()
    assert made[0] == made[1] != made[2]


def test_nothing_is_trained_where_the_base_cannot_be_evaluated(base, task, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("tskd.modules.finetuner.finetune", lambda *_, **__: pytest.fail("it was trained"))

    def refuse(_):
        raise ModelError("too long")

    folder = tmp_path / "teachers" / "t"
    with pytest.raises(ModelError, match="too long"):
        recipe(tmp_path).make(base, task, refuse, trainer, folder)
    assert [] == list(folder.parent.iterdir())


def test_what_fails_half_way_leaves_nothing_and_can_be_made_again(base, task, trainer, tmp_path):
    with pytest.raises(ZeroDivisionError):
        make(recipe(tmp_path), base, task, trainer, lambda: 1 / 0)
    assert [] == list((tmp_path / "teachers").iterdir())
    _, folder = make(recipe(tmp_path), base, task, trainer)
    assert [folder] == list((tmp_path / "teachers").iterdir())


def test_of_two_jobs_the_first_to_end_makes_the_teacher_of_both(base, llama, task, trainer, tmp_path):
    def other_job():
        folder = recipe(tmp_path).folder_for(base.weights.checkpoint, task)
        shutil.copytree(sooner, folder)
        (folder / "card.json").write_text(json.dumps({"made": "sooner"}))

    _, sooner = make(recipe(tmp_path / "sooner", seed=5), LanguageModel(tiny.weights(llama)), task, trainer)
    card, folder = make(recipe(tmp_path), base, task, trainer, other_job)
    assert {"made": "sooner"} == card
    assert [folder] == list(folder.parent.iterdir())
    expected = logits(LanguageModel(tiny.weights(llama), str(sooner)))
    assert torch.equal(expected, logits(LanguageModel(base.weights, str(folder))))


def test_one_that_was_made_since_is_found(base, task, trainer, tmp_path, monkeypatch):
    card, _ = make(recipe(tmp_path), base, task, trainer)
    monkeypatch.setattr("tskd.modules.finetuner.finetune", lambda *_, **__: pytest.fail("it was trained"))
    assert card == make(recipe(tmp_path), base, task, trainer)[0]


def test_a_folder_that_is_no_teacher_is_not_replaced(base, task, trainer, tmp_path):
    folder = recipe(tmp_path).folder_for(base.weights.checkpoint, task)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(RunFolderError, match=r"no whole teacher, for it has no card.json; move it away"):
        make(recipe(tmp_path), base, task, trainer)
    assert [folder / "thesis.txt"] == list(folder.iterdir())


def test_a_place_that_cannot_be_written_is_one_line_before_training(base, task, trainer, tmp_path):
    (tmp_path / "teachers").write_text("a file")
    with pytest.raises(RunFolderError, match=r"Cannot write to .*teachers: .*another `teacher.folder`") as error:
        make(recipe(tmp_path), base, task, trainer)
    assert "\n" not in str(error.value)


def test_without_private_examples_there_is_no_teacher(base, task, trainer, tmp_path):
    with pytest.raises(ConfigError, match="bbh-navigate has no private examples"):
        make(recipe(tmp_path), base, replace(task, num_private=0), trainer)


# The configuration


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return OmegaConf.to_container(
            compose("config", overrides=["trainer.accelerator=cpu", "store=off", *overrides]), resolve=True
        )


def speaking_as(folder):
    return ["base=llama3", f"base.checkpoint.path={folder}", "base.checkpoint.dtype=float32"]


def of_bbh(root):
    return ["task=bbh", f"task.root={root}", "task.subset=navigate"]


def test_a_teacher_is_to_be_made_until_it_is_there(llama, data, trainer, tmp_path):
    place = f"teacher.folder={tmp_path / 'teachers'}"
    cfg = composed("teacher=finetuned", place, "task.epochs=1", *speaking_as(llama), *of_bbh(data))
    run = build(cfg, tmp_path)
    folder = run.teacher_to_make.folder_for(run.base.weights.checkpoint, run.task)
    assert str(folder) == run.teacher.adapter
    run.teacher_to_make.make(run.base, run.task, Evaluation(run.evaluator.questions), trainer, folder)
    again = build(cfg, tmp_path)
    assert (None, str(folder)) == (again.teacher_to_make, again.teacher.adapter)
    again.base.weights.check_adapter(again.teacher.adapter)


@pytest.mark.parametrize("task", [["task=atlas"], ["task=files", "task.seeds=seeds.txt"]])
def test_a_task_without_a_private_split_says_what_to_do(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.txt").write_text("one\ntwo\n")
    said = r"`teacher=finetuned` needs .*choose a benchmark \(`task=bbh`, .*`teacher=adapter teacher.adapter=`"
    with pytest.raises(ConfigError, match=said) as error:
        build(composed("teacher=finetuned", *task), tmp_path)
    assert "\n" not in str(error.value)


def test_a_fully_fine_tuned_teacher_is_a_model_of_its_own(llama, neox, tmp_path):
    run = build(composed("teacher=full", f"teacher.checkpoint.path={neox}"), tmp_path)
    assert (str(neox), None) == (run.teacher.weights.checkpoint.path, run.teacher.adapter)
    assert run.teacher.weights is not run.base.weights
    run.check_models()


# Held-out questions

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A model that writes one of eight letters as a new prompt."""
    folder = tmp_path_factory.mktemp("letters") / "m"
    return scripted.save_model(folder, {":": " ", " ": list(LETTERS)})


def questions_of_files(folder):
    (folder / "seeds.txt").write_text("a\nb\n")
    fabricated.write_lines(folder / "held_out.jsonl", [{"prompt": " C\n", "answer": "x"}, {"prompt": "d"}])
    return ["task=files", f"task.seeds={folder / 'seeds.txt'}", f"task.held_out={folder / 'held_out.jsonl'}"]


def questions_of_a_benchmark(folder):
    fabricated.write_bbh(folder, "navigate", [{"input": f"  {letter.upper()}", "target": "x"} for letter in LETTERS])
    return [*of_bbh(folder), "task.num_seeds=2"]


@pytest.mark.parametrize("questions", [questions_of_files, questions_of_a_benchmark])
def test_a_draft_that_repeats_a_held_out_question_is_left_out_and_counted(questions, letters, tmp_path):
    drafts = ["expansion.num_drafts=60", "task.prompt_tokens=8"]
    run = build(composed(*speaking_as(letters), *drafts, *questions(tmp_path)), tmp_path)
    held_out = {question.prompt.text.strip().lower() for question in run.evaluator.questions}
    seeds = {prompt.text.lower() for prompt in run.seeds}
    made = run.stages.expand(run.seeds, run.seeds, 0)
    assert {prompt.text for prompt in made.prompts} == set(LETTERS) - held_out - seeds
    assert 60 == len(made.prompts) + made.duplicates + made.held_out == made.drafts
    row = iteration_metrics(Iteration(0, made, (), Selection((), ()), None), [])
    assert row["prompts/held_out"] == made.held_out > len(held_out) >= 2


def test_in_the_embedded_world_a_held_out_question_may_be_written(tmp_path):
    run = build(composed("task=atlas"), tmp_path)
    assert run.evaluator.questions
    assert frozenset() == run.stages.expand.held_out
