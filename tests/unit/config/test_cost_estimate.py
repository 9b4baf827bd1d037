"""A plan: upper bounds before a run, exact numbers once the store holds its results, and nothing loaded or left."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from tests import fabricated, tiny
from tskd import experiment
from tskd.config import hydra_plugins, saved
from tskd.config.cost_estimate import Count, plan
from tskd.errors import ConfigError, ModelError
from tskd.models.checkpoint import Checkpoint
from tskd.models.encoding import encode_response
from tskd.models.weights import Weights
from tskd.plan import main
from tskd.records import Response, Scored
from tskd.storage import run_folder

SMALL = [
    *("iterations=2", "expansion.num_drafts=24", "task.epochs=2", "training.replay.num_texts=8"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "tracking.mode=disabled"),
]
SHA = "0123456789" * 4


@dataclass(frozen=True)
class Silent:
    """An expansion of a user's own, which takes what every one is given."""

    writer: object
    seed: int
    held_out: frozenset[str]


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return saved.resolved(compose("config", [*SMALL, *overrides]))


def summary(made):
    return [(work.iteration, work.stage, work.models) for work in made.work]


def of(made, stage, iteration=0):
    (work,) = (work for work in made.work if (work.stage, work.iteration) == (stage, iteration))
    return work


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def planned(place):
    """Before anything is stored."""
    made = plan(composed(f"store={place / 'store'}"))
    assert [] == list(place.iterdir())
    return made


@pytest.fixture(scope="module")
def records(place, planned):
    """What a run of the same configuration has left in its folder."""
    experiment.job(composed(f"store={place / 'store'}"), place / "run", "group", "run")
    return run_folder.RunFolder(place / "run")


@pytest.fixture
def known(place, records):
    return plan(composed(f"store={place / 'store'}"))


@pytest.fixture(autouse=True)
def no_weights(request, monkeypatch):
    """Only the run that fills the store may load them."""
    if "records" in request.fixturenames:
        request.getfixturevalue("records")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights are loaded"))


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """``python -m tskd.plan`` in an empty folder: its exit code, and what it printed."""

    def command(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(hydra_plugins, "started", [])
        monkeypatch.setattr(sys, "argv", ["plan", *arguments])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return command


def test_before_a_run_there_are_upper_bounds_and_nothing_is_stored(planned):
    stages = [
        *(("expand", "base"), ("answer", "teacher"), ("score", "base, teacher")),
        *(("train", "target"), ("evaluate", "target")),
    ]
    evaluations = [(None, "evaluate", role) for role in ("base", "teacher", "target")]
    assert [*evaluations, *((i, *stage) for i in (0, 1) for stage in stages)] == summary(planned)
    assert {None} == {work.seconds for work in planned.work}
    assert {None} == {planned.estimate(work) for work in planned.work}
    assert Count(24) == of(planned, "expand").items
    assert Count(24 * 24, True) == of(planned, "expand").writes
    assert Count(8 + 24, True) == of(planned, "answer").items
    assert Count((8 + 24) * 16, True) == of(planned, "answer").writes
    assert Count(8 * 24, True) == of(planned, "train").writes
    assert [Count(32, True), Count(56, True)] == [of(planned, "train", i).items for i in (0, 1)]
    assert Count(0) == of(planned, "train", 1).writes  # replay is written once


def test_the_bounds_hold(planned, known):
    assert summary(planned) == summary(known)
    for before, after in zip(planned.work, known.work, strict=True):
        for name in ("items", "reads", "writes", "memory"):
            most, found = getattr(before, name), getattr(after, name)
            assert (found <= most) if name == "memory" else (found.number <= most.number), (before, after)


def test_after_the_run_all_is_in_the_store_with_its_exact_numbers(known, records):
    assert all(work.seconds > 0 for work in known.work)
    history, rows = records.history(), records.rows()
    for i, (iteration, row) in enumerate(zip(history, rows, strict=True)):
        expand, answer, train = (of(known, stage, i) for stage in ("expand", "answer", "train"))
        assert row["cost/generated_tokens"] == sum(work.writes.number for work in (expand, answer, train))
        assert Count(len(iteration.scored)) == answer.items == of(known, "score", i).items
        assert Count(row["train/examples"]) == train.items
        assert not any(work.writes.is_most for work in (expand, answer, train))

    def tokens(model, examples: list[Scored]):
        responses = [example.response for example in examples]
        return sum(len(encode_response(model, r.prompt, r.text, r.finished).ids) for r in responses)

    scored = [example for iteration in history for example in iteration.scored]
    kept = [example for iteration in history for example in iteration.selection.kept]
    assert 2 * tokens(known.run.teacher, scored) == sum(of(known, "score", i).reads.number for i in (0, 1))
    assert Count(2 * tokens(known.run.target, kept)) == of(known, "train", 1).reads


def test_what_was_computed_gives_the_rate_of_what_is_to_come(place, records):
    made = plan(composed(f"store={place / 'store'}", "iterations=3"))
    before, after = of(made, "answer", 1), of(made, "answer", 2)
    assert before.seconds is not None
    assert after.seconds is None
    assert after.items.is_most
    rates = [of(made, "answer", i) for i in (0, 1)]
    rate = sum(work.seconds for work in rates) / sum(work.writes.number for work in rates)
    assert after.writes.number * rate == pytest.approx(made.estimate(after))
    assert all(made.estimate(work) is not None for work in made.work)


def test_other_epochs_leave_prompts_answers_and_scores_known(place, records):
    made = plan(composed(f"store={place / 'store'}", "training.lora.epochs=3"))
    missing = [(work.iteration, work.stage) for work in made.work if work.seconds is None]
    assert [(0, "train"), (0, "evaluate"), (1, "train"), (1, "evaluate")] == missing
    assert [Count(row["train/examples"]) for row in records.rows()] == [of(made, "train", i).items for i in (0, 1)]
    assert not of(made, "train").reads.is_most


def test_a_run_that_is_sure_to_keep_nothing_is_told_so(place, records, command):
    code, out, _ = command(*SMALL, f"store={place / 'store'}", "threshold=1e9")
    assert 1 == code
    assert "Iteration 0 kept 0 of" in out
    assert "Lower `threshold`" in out


def test_a_look_into_the_store_changes_nothing_and_takes_nothing_damaged(place, records, tmp_path, known):
    files = {file: file.stat().st_mtime_ns for file in (place / "store").rglob("*")}
    cfg = composed(f"store={place / 'store'}")
    assert all(work.seconds is not None for work in plan(cfg).work)
    assert files == {file: file.stat().st_mtime_ns for file in (place / "store").rglob("*")}
    copy = shutil.copytree(place / "store", tmp_path / "store")
    next(copy.glob("score-*.json")).write_text("damaged")
    for weights in copy.glob("train-*/adapter_model.safetensors"):
        weights.write_bytes(b"others")
    missing = {work.stage for work in plan(cfg | {"store": str(copy)}).work if work.seconds is None}
    assert {"score", "train"} <= missing


def test_the_command_prints_a_plan_and_leaves_nothing(command, tmp_path):
    code, out, err = command(*SMALL, "expansion.num_drafts=300")
    assert (0, "") == (code, err)
    assert "902,272 parameters, 3.6 MB" in out
    assert "base + zoo://atlas/teacher" in out
    assert "0 answer teacher ≤ 308 ≤ 9,428 ≤ 4,928" in " ".join(out.split())
    assert "stored     0 of 13 results" in out
    assert [] == list(tmp_path.iterdir())


def test_a_sweep_is_planned_job_by_job(command, tmp_path):
    code, out, err = command("-m", *SMALL, "target.checkpoint.path=zoo://atlas/neox,/nowhere")
    assert 1 == code
    assert 1 == out.count("parameters, 3.4 MB")
    assert "There is no folder /nowhere for model 'atlas_neox'; give a folder" in err
    assert [] == list(tmp_path.iterdir())


def test_a_missing_model_is_one_line(command):
    code, out, err = command(*SMALL, "base.checkpoint.path=/nowhere")
    assert (1, "") == (code, out)
    assert ["There is no folder /nowhere for model 'atlas_llama'; give a folder, or a hub id like `owner/name`."] == (
        err.splitlines()
    )


def test_an_adapter_of_another_model_is_told(adapter):
    with pytest.raises(ModelError, match="was made for"):
        plan(composed("teacher=adapter", f"teacher.adapter={adapter}"))


def test_what_has_no_room_in_a_model_is_told(command):
    code, _, err = command(*SMALL, "task.response_tokens=4096")
    assert 1 == code
    assert "has room for" in err


# Models of the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, and a hub that must not be asked."""

    def download(*_, **__):
        assert constants.HF_HUB_OFFLINE
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    assert not constants.HF_HUB_OFFLINE


def test_a_model_that_is_not_here_is_not_downloaded_but_bounds_are_known(hub, command):
    made = plan(composed("base.checkpoint.path=owner/name"))
    assert {None} == {work.memory for work in made.work}
    assert [None, None] == [of(made, stage).reads for stage in ("answer", "score")]
    assert of(made, "train").reads is not None  # the target is here
    assert Count((8 + 24) * 16, True) == of(made, "answer").writes
    code, out, _ = command(*SMALL, "base.checkpoint.path=owner/name")
    assert 0 == code
    assert "atlas_llama (owner/name), float32, not on this machine" in out
    assert "memory     ? needed" in out


def test_an_adapter_that_is_not_here_is_not_downloaded(hub, command):
    code, out, _ = command(*SMALL, "teacher=adapter", "teacher.adapter=owner/name")
    assert 0 == code
    assert "base + owner/name, not on this machine" in out


def test_a_name_that_no_hub_can_have_is_an_error():
    with pytest.raises(ModelError, match="neither a folder here nor"):
        plan(composed("base.checkpoint.path='a b/c'"))


def test_a_model_in_the_hubs_cache_is_here(llama, monkeypatch, tmp_path):
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(llama, repository / "snapshots" / SHA)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    made = plan(composed("target.checkpoint.path=owner/tiny"))
    assert made.run.target in made.here
    assert SHA == made.run.target.weights.resolved_revision
    assert of(made, "train").reads is not None


def test_memory_counts_the_training_and_the_writing_of_replay():
    def needed(*overrides):
        return of(plan(composed(*overrides)), "train").memory

    without, much = "training.replay.source=none", "training.replay.num_texts=4096"
    assert needed("training.lora.gradient_checkpointing=true", without) < needed(without) < needed(much)
    assert needed(much, "trainer.max_batch_tokens=64") < needed(much)


# Tasks


def test_a_teacher_that_is_to_be_made_comes_first(llama, tmp_path, command):
    data = fabricated.write_all(tmp_path / "data")
    overrides = [
        *("task=bbh", f"task.root={data}", "task.subset=navigate", "task.limit=4", "task.num_private=6"),
        *("base=llama3", f"base.checkpoint.path={llama}", "base.checkpoint.dtype=float32", "teacher=finetuned"),
        *("task.prompt_tokens=64", "task.response_tokens=16", "expansion.num_exemplars=2"),
    ]
    made = plan(composed(*overrides, f"teacher.folder={tmp_path / 'teachers'}"))
    assert [(None, "train", "base"), (None, "evaluate", "base")] == summary(made)[:2]
    examples = [Response(question.prompt, question.answer) for question in made.run.task.examples()]
    tokens = sum(len(encode_response(made.run.base, r.prompt, r.text, True).ids) for r in examples)
    assert (Count(6), Count(2 * tokens)) == (made.work[0].items, made.work[0].reads)
    assert made.run.teacher not in made.here
    code, out, _ = command(*SMALL, *overrides)
    assert 0 == code
    assert "to be made first" in out


def test_questions_without_answers_are_asked_of_the_teacher_first(tmp_path):
    (tmp_path / "seeds.txt").write_text("What is the code of A?\nWhat is the code of B?\n")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "What is the code of C?"}) + "\n")
    files = ["task=files", f"task.seeds={tmp_path / 'seeds.txt'}", f"task.held_out={tmp_path / 'held_out.jsonl'}"]
    made = plan(composed(*files, "task.prompt_tokens=24", "task.response_tokens=16"))
    assert [(None, "answer", "teacher"), (None, "evaluate", "base")] == summary(made)[:2]
    assert Count(1) == made.work[0].items
    without = plan(composed(*files[:2], "task.prompt_tokens=24", "task.response_tokens=16"))
    assert "evaluate" not in {work.stage for work in without.work}


def test_a_discriminator_has_prompts_written_and_is_trained_once_before_it_scores():
    made = plan(composed("selection=discriminator", "store=off"))
    first = [(stage, models) for index, stage, models in summary(made) if index == 0]
    assert [("expand", "base"), ("answer", "teacher")] == first[:2]
    assert [("expand", "base"), ("train", "base"), ("score", "base, teacher"), ("train", "target")] == first[2:6]
    assert 1 == [work.models for work in made.work if work.stage == "train"].count("base")
    (training,) = (work for work in made.work if (work.stage, work.models) == ("train", "base"))
    assert Count(2 * 120, is_most=True) == training.items  # of 24 drafts and 120 private prompts, both sides as large


def test_what_is_given_is_planned_by_its_number_and_costs_nothing():
    made = plan(composed("expansion=private", "expansion.num_drafts=100", "store=off"))
    assert {"answer", "score", "train", "evaluate"} == {work.stage for work in made.work}
    task = made.run.task
    asked = {seed.fingerprint for seed in made.run.seeds} | {q.prompt.fingerprint for q in task.examples()}
    numbers = [of(made, "answer", index).items for index in (0, 1)]
    assert [Count(len(made.run.seeds) + 100), Count(len(asked) - len(made.run.seeds) - 100)] == numbers

    made = plan(composed("expansion=private", "answer=gold", "training=lora", "store=off"))
    assert {"score", "train", "evaluate"} == {work.stage for work in made.work}
    assert not of(made, "train").reads.is_most


def test_which_prompts_to_come_have_a_given_answer_cannot_be_planned():
    with pytest.raises(ConfigError, match="which of the prompts to come have an answer with `answer=gold`"):
        plan(composed("answer=gold", "store=off"))


def test_an_expansion_that_says_nothing_of_its_size_cannot_be_planned():
    cfg = composed()
    with pytest.raises(ConfigError, match="A plan needs an `expansion` that has writer, num_drafts"):
        plan(cfg | {"expansion": {"_target_": "tests.unit.config.test_cost_estimate.Silent"}, "allow": "tests"})


# Sizes


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_sizes_are_those_of_the_loaded_model(kind, request):
    folder: Path = request.getfixturevalue(kind)
    bare = AutoModelForCausalLM.from_config(tiny.weights(folder).config)
    size = tiny.weights(folder).size
    assert bare.num_parameters() == size.parameters
    assert 4 * size.parameters == size.weights
    cache = bare(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=True).past_key_values
    kept = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert kept == 3 * size.cache


def test_a_smaller_data_type_or_quantisation_is_a_smaller_size(llama):
    def weights(**settings):
        return Weights(Checkpoint("tiny", str(llama), **settings)).size.weights

    whole = weights(dtype="float32")
    linear = 2 * (4 * 32 * 32 + 3 * 32 * 64)  # of two layers: the head and the embeddings stay as they are
    assert whole / 2 == weights(dtype="bfloat16")
    assert whole - 3 * linear == weights(dtype="float32", quantization="8bit")
    assert whole - 3.5 * linear == weights(dtype="float32", quantization="4bit")
