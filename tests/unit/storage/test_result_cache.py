"""What is computed once is not computed again, and nothing else is ever taken for it."""

import importlib
import os
import signal
import stat
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests import tiny
from tests.edited import edited
from tskd.cache import main
from tskd.engines.continuous_batching import ContinuousBatching
from tskd.engines.own import OwnLoop
from tskd.models.weights import LanguageModel
from tskd.modules.lora import LoraSettings
from tskd.modules.trainer import LightningTrainer
from tskd.records import Adapter, Expansion, Graded, Prompt, Response, Scored, Selection
from tskd.runtime import interrupts
from tskd.stages.answer import Answer
from tskd.stages.screen import Screen
from tskd.stages.select.thresholds import SeedLikeness, SeedShift
from tskd.stages.train import TrainLora
from tskd.storage.fingerprint import cache_key, key_content
from tskd.storage.result_cache import Store, entries, prune
from tskd.tuneshift import Stages

PROMPTS = [Prompt("a"), Prompt("b", iteration=1, parents=("x",))]
SCORED = [Scored(Response(prompt, "yes", tokens=2), 3.0, 1.0, 2, {"kl": 0.5}) for prompt in PROMPTS]


@dataclass
class Counting:
    """Stages that note each call; ``setting`` is what decides their results."""

    folder: object
    setting: int = 0

    def __post_init__(self):
        self.calls = []

    def stages(self):
        outer = self

        @dataclass(frozen=True)
        class Stage:
            name: str
            setting: int

            def __call__(self, *inputs):
                outer.calls.append(self.name)
                return {
                    "expand": lambda: Expansion(tuple(PROMPTS), drafts=3, duplicates=1),
                    "answer": lambda: [Response(prompt, "yes", tokens=2) for prompt in inputs[0]],
                    "score": lambda: [Scored(r, 3.0, 1.0, 2, {"kl": 0.5}) for r in inputs[0]],
                    "select": lambda: Selection(tuple(inputs[0]), ()),
                    "train": self._train,
                }[self.name]()

            def _train(self):
                folder = outer.folder / "iteration_0" / "adapter"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "adapter_config.json").write_text("{}")
                (folder / "adapter_model.safetensors").write_bytes(b"weights")
                return Adapter("iteration_0/adapter", "target", 2, 0.5, 40)

        return Stages(*(Stage(name, self.setting) for name in ("expand", "answer", "score", "select", "train")))


def go_through(store, counting):
    stages = store.sharing(counting.stages(), counting.folder)
    expansion = stages.expand(PROMPTS, PROMPTS, 0)
    scored = stages.score(stages.answer(expansion.prompts))
    return expansion, scored, stages.train(scored, [], 0)


@pytest.fixture
def jobs(tmp_path):
    return tmp_path / "store", Counting(tmp_path / "first"), Counting(tmp_path / "second")


def test_a_second_job_takes_everything_and_gets_the_same(jobs):
    folder, first, second = jobs
    computed, taken = go_through(Store(folder), first), go_through(Store(folder), second)
    assert computed == taken
    assert (["expand", "answer", "score", "train"], []) == (first.calls, second.calls)
    assert b"weights" == (second.folder / "iteration_0/adapter/adapter_model.safetensors").read_bytes()


def test_another_setting_is_another_result(jobs):
    folder, first, second = jobs
    go_through(Store(folder), first)
    go_through(Store(folder), replace(second, setting=1))
    other = Counting(second.folder, setting=2)
    go_through(Store(folder), other)
    assert ["expand", "answer", "score", "train"] == other.calls


def test_other_inputs_are_another_result(jobs):
    folder, first, second = jobs
    Store(folder).sharing(first.stages(), first.folder).answer(PROMPTS)
    Store(folder).sharing(second.stages(), second.folder).answer(PROMPTS[:1])
    assert ["answer"] == second.calls


def test_other_code_is_another_result(jobs):
    folder, first, second = jobs
    go_through(Store(folder), first)
    with edited("tests/unit/storage/test_result_cache.py", '"iteration_0" / "adapter"', '"elsewhere"'):
        go_through(Store(folder), second)
    assert ["expand", "answer", "score", "train"] == second.calls
    with edited("tskd/report/tables.py", "return", "raise"):
        go_through(Store(folder), second)
    assert 4 == len(second.calls)


def test_without_a_folder_everything_is_computed(jobs):
    _, first, second = jobs
    go_through(Store(None), first)
    go_through(Store(None), second)
    assert first.calls == second.calls != []


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "no text"])
def test_a_damaged_entry_is_computed_again(jobs, harm):
    folder, first, second = jobs
    go_through(Store(folder), first)
    for file in folder.glob("*.json"):
        content = file.read_bytes()
        flipped = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
        harmed = {"flip": flipped, "cut": content[: len(content) // 2], "empty": b"", "no text": b"\xff\xfe"}
        file.write_bytes(harmed[harm])
    assert SCORED == go_through(Store(folder), second)[1]
    assert ["expand", "answer", "score", "train"] == second.calls


def test_damaged_weights_are_trained_again(jobs):
    folder, first, second = jobs
    go_through(Store(folder), first)
    (weights,) = folder.glob("train-*/adapter_model.safetensors")
    weights.write_bytes(b"other!!")
    go_through(Store(folder), second)
    assert ["train"] == second.calls


def test_what_was_reused_is_counted_in_seconds(jobs):
    folder, first, second = jobs
    fresh, again = Store(folder), Store(folder)
    go_through(fresh, first)
    go_through(again, second)
    assert 0 == fresh.reused_seconds < again.reused_seconds


def test_only_the_owner_can_read_the_folder(jobs):
    folder, first, _ = jobs
    go_through(Store(folder), first)
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)


def test_a_store_that_cannot_be_written_costs_only_time(jobs, monkeypatch, caplog):
    folder, first, _ = jobs
    store = Store(folder)
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert [response.text for response in store.sharing(first.stages(), first.folder).answer(PROMPTS)] == ["yes", "yes"]
    assert "No space left on device" in caplog.text


def test_evaluations_are_shared_by_model(jobs, llama, adapter):
    folder, _, _ = jobs
    asked = []

    @dataclass(frozen=True)
    class Evaluator:
        def __call__(self, model):
            asked.append(model)
            return [Graded("id", "text", True)]

    weights = tiny.weights(llama)
    for model in (LanguageModel(weights), LanguageModel(weights, str(adapter)), LanguageModel(tiny.weights(llama))):
        assert [Graded("id", "text", True)] == Store(folder).graded(Evaluator(), model)
    assert 2 == len(asked)


def test_the_identity_of_a_stage_is_its_settings_and_its_models_contents(llama, adapter, trainer, tmp_path):
    def answer(weights, adapter=adapter, **settings):
        return key_content(Answer(LanguageModel(weights, str(adapter)), trainer, 0, **settings))

    same = answer(tiny.weights(llama))
    assert same == answer(tiny.weights(llama))
    assert same != answer(tiny.weights(llama), temperature=1.0)
    assert same != answer(tiny.weights(llama), tiny.save_adapter(llama, tmp_path / "other", seed=9))
    assert same != answer(tiny.weights(tiny.save_model(tmp_path / "model", seed=9)))


def test_screens_by_different_rules_do_not_share_their_results(llama, adapter, trainer):
    weights = tiny.weights(llama)
    screen = partial(Screen, LanguageModel(weights), LanguageModel(weights, str(adapter)), trainer)
    assert cache_key(screen(by=SeedShift)) == cache_key(screen(by=SeedShift)) != cache_key(screen(by=SeedLikeness))


def test_a_users_own_stage_is_known_by_its_code_and_its_state(tmp_path, monkeypatch):
    def own(code, **state):
        (tmp_path / "own_stage.py").write_text(code)
        monkeypatch.delitem(sys.modules, "own_stage", raising=False)
        importlib.invalidate_caches()
        made = importlib.import_module("own_stage").Own()
        vars(made).update(state)
        return cache_key([made, made.__call__, type(made)])

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = "class Own:\n    def __call__(self, pool, seen, index): return {}\n"
    assert own(code.format(1)) == own(code.format(1))
    assert own(code.format(1)) != own(code.format(2))
    assert own(code.format(1), temperature=1) != own(code.format(1), temperature=2)
    assert cache_key([len]) != cache_key([max])


def test_places_devices_of_the_same_kind_and_batches_do_not_decide(llama, tmp_path):
    def train(folder, max_batch_tokens):
        trainer = LightningTrainer(accelerator="cpu", progress=False, max_batch_tokens=max_batch_tokens)
        return key_content(
            TrainLora(LanguageModel(tiny.weights(llama)), trainer, folder, 0, LoraSettings(), log_step=print)
        )

    assert train(tmp_path / "a", 64) == train(tmp_path / "b", 8192)


def test_the_engine_decides_where_it_is_not_our_own_loop_as_it_comes(llama, trainer):
    model = LanguageModel(tiny.weights(llama))

    def answer(**settings):
        return key_content(Answer(model, trainer, 0, **settings))

    assert answer()["trainer"] == ["cpu", "32-true"]
    assert answer() == answer(engine=OwnLoop())
    others = [answer(engine=engine) for engine in (OwnLoop(merge_adapter=True), ContinuousBatching())]
    assert answer() != others[0] != others[1] != answer()


def test_of_two_jobs_that_want_the_same_one_computes_it_and_the_other_waits(jobs, caplog):
    store, _, _ = jobs
    started, may_end, calls, results = threading.Event(), threading.Event(), [], {}

    def evaluator(model):
        calls.append(model)
        started.set()
        assert may_end.wait(20)
        return [Graded("q", "yes", True)]

    one, other = (
        threading.Thread(target=lambda name=name: results.update({name: Store(store).graded(evaluator, "model")}))
        for name in ("one", "other")
    )
    with caplog.at_level("INFO"):
        one.start()
        assert started.wait(20)
        other.start()
        for _ in range(2000):
            if "Another job computes the same evaluate; this one waits for it." in caplog.text:
                break
            time.sleep(0.01)
    may_end.set()
    for thread in (one, other):
        thread.join(20)
    assert results["one"] == results["other"] == [Graded("q", "yes", True)]
    assert calls == ["model"]


def test_a_job_that_waits_for_another_can_be_stopped(jobs, monkeypatch):
    store, _, _ = jobs
    started, may_end = threading.Event(), threading.Event()

    def evaluator(_):
        started.set()
        assert may_end.wait(20)
        return [Graded("q", "yes", True)]

    one = threading.Thread(target=lambda: Store(store).graded(evaluator, "model"))
    one.start()
    assert started.wait(20)
    monkeypatch.setattr(interrupts, "_asked", signal.SIGTERM)
    with pytest.raises(interrupts.Interrupted, match="SIGTERM"):
        Store(store).graded(evaluator, "model")
    may_end.set()
    one.join(20)


def test_within_its_limit_a_store_keeps_what_was_used_last(jobs):
    store, first, second = jobs
    go_through(Store(store), first)
    everything = sum(entry.size for entry in entries(store))
    second.setting = 1
    go_through(Store(store, limit_gb=everything * 1.2 / 10**9), second)
    assert sum(entry.size for entry in entries(store)) <= everything * 1.2
    before = len(second.calls)
    go_through(Store(store), second)
    assert len(second.calls) == before


def test_pruning_throws_away_what_was_longest_not_used(jobs):
    folder, first, second = jobs
    go_through(Store(folder), first)
    for age, entry in enumerate(entries(folder)):
        os.utime(entry.paths[0], (age, age))
    oldest, *others = entries(folder)
    go_through(Store(folder), second)  # uses them all again, in the order of the stages
    assert ["expand", "answer", "score", "train"] == [entry.stage for entry in entries(folder)]
    os.utime(oldest.paths[0], (0, 0))
    assert [oldest.stage] == [e.stage for e in prune(folder, sum(entry.size for entry in others))]
    assert not any(path.exists() for path in oldest.paths)
    assert [] == prune(folder, 10**9)


def test_the_command_lists_and_prunes(jobs, capsys, monkeypatch):
    folder, first, _ = jobs
    go_through(Store(folder), first)
    monkeypatch.setattr("sys.argv", ["store", str(folder), "--prune", "0"])
    main()
    said = capsys.readouterr().out
    assert "removed 4 entries" in said
    assert "train           0 entries" in said
    monkeypatch.setattr("sys.argv", ["store", str(folder / "none")])
    with pytest.raises(SystemExit, match="There is no store in"):
        main()
