"""Whatever moment a pass or a training is broken off at, it goes on to the result of one that was not."""

from dataclasses import replace

import pytest

from tests import tiny
from tests.edited import edited
from tskd.engines.own import generate
from tskd.errors import RunFolderError
from tskd.models.encoding import encode_response
from tskd.models.generation import Request, Sampling
from tskd.models.weights import LanguageModel
from tskd.modules.finetuner import Finetuner, finetune
from tskd.modules.generator import Generator
from tskd.modules.lora import LoraSettings
from tskd.modules.resume import ResumableTrainer
from tskd.modules.scorer import Scorer, score
from tskd.records import Prompt, Response
from tskd.storage.journal import Journal

REQUESTS = [Request(tuple(range(3, 3 + length)), str(length)) for length in (5, 9, 2, 30, 4, 17, 8)]
RESPONSES = [Response(Prompt("q" * length), "a" * (1 + length % 7)) for length in (5, 9, 2, 30, 4, 17, 8)]


class BrokenOff(Exception):
    pass


@pytest.fixture
def breaking(monkeypatch):
    """Has ``kind.name`` raise at its call number ``at``, and gives the list of calls that were let through."""

    def breaking(kind, name, at):
        monkeypatch.undo()
        real, calls = getattr(kind, name), []

        def broken(self, given, *others):
            if len(calls) == at:
                raise BrokenOff
            calls.append(given)
            return real(self, given, *others)

        monkeypatch.setattr(kind, name, broken)
        return calls

    return breaking


def resumable(folder, **settings):
    return ResumableTrainer(accelerator="cpu", progress=False, journal=Journal(folder), **settings)


@pytest.fixture
def noting(tmp_path):
    return resumable(tmp_path / "journal", max_batch_tokens=64)


def written(llama, trainer):
    return generate(LanguageModel(tiny.weights(llama)), REQUESTS, Sampling(20, temperature=1.0), trainer)


def scored(llama, adapter, trainer):
    weights = tiny.weights(llama)
    models = LanguageModel(weights), LanguageModel(weights, str(adapter))
    return score(RESPONSES, *models, trainer, ["kl", "token_excess"])


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("kind", [Generator, Scorer])
def test_a_pass_goes_on_after_the_last_batch_that_was_finished(llama, adapter, trainer, noting, breaking, kind, at):
    def work(trainer):
        return written(llama, trainer) if kind is Generator else scored(llama, adapter, trainer)

    batches = breaking(kind, "compute", None)
    whole = work(replace(trainer, max_batch_tokens=64))
    assert len(batches) > 3
    before = breaking(kind, "compute", at)
    with pytest.raises(BrokenOff):
        work(noting)
    after = breaking(kind, "compute", None)
    assert whole == work(noting)
    assert batches == before + after
    assert [] == breaking(kind, "compute", 0)
    assert whole == work(noting)


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text[:-9] + b"x" + text[-8:]])
def test_what_was_broken_off_while_it_was_noted_or_damaged_is_computed_again(llama, noting, breaking, damage):
    whole = written(llama, noting)
    (file,) = noting.journal.folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = breaking(Generator, "compute", None)
    assert whole == written(llama, noting)
    assert 1 == len(again)
    assert 0 == len(breaking(Generator, "compute", None))
    assert whole == written(llama, noting)


def test_what_was_noted_is_taken_for_nothing_else(llama, neox, noting, breaking):
    written(llama, noting)
    for change in (
        lambda: written(neox, noting),
        lambda: generate(LanguageModel(tiny.weights(llama)), REQUESTS, Sampling(20), noting),
        lambda: generate(LanguageModel(tiny.weights(llama)), REQUESTS, Sampling(20, temperature=1.0), noting, stop="("),
        lambda: generate(LanguageModel(tiny.weights(llama)), REQUESTS[1:], Sampling(20, temperature=1.0), noting),
    ):
        computed = breaking(Generator, "compute", None)
        change()
        assert computed


@pytest.mark.parametrize("kind", [Generator, Scorer])
@pytest.mark.parametrize(
    ("file", "old", "new", "is_other"),
    [
        ("tskd/models/networks.py", "return ", "raise ", True),
        ("tskd/models/networks.py", "\n    return ", "\n\n    return ", False),
        ("tskd/report/tables.py", "return ", "raise ", False),
    ],
)
def test_what_other_code_noted_is_computed_again(llama, adapter, noting, breaking, kind, file, old, new, is_other):
    def work():
        return written(llama, noting) if kind is Generator else scored(llama, adapter, noting)

    whole = work()
    with edited(file, old, new):
        computed = breaking(kind, "compute", None)
        assert whole == work()
    assert is_other is bool(computed)


def test_a_journal_that_cannot_be_written_stops_the_pass_in_one_line(llama, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"Cannot write .*file.*go on with `resume=`"):
        written(llama, resumable(tmp_path / "file"))


@pytest.mark.parametrize("replay_loss", ["kl", "nll"])
@pytest.mark.parametrize("at", [1, 4, 8])  # of 3 epochs of 3 steps
def test_a_training_goes_on_after_its_last_epoch(neox, trainer, tmp_path, breaking, replay_loss, at):
    settings = LoraSettings(
        rank=2, epochs=3, batch_size=3, dropout=0.1, learning_rate=1e-2, replay_loss=replay_loss, replay_weight=1.0
    )

    def trained(name, trainer):
        weights = tiny.weights(neox)
        texts = [encode_response(LanguageModel(weights), r.prompt, r.text, finished=True) for r in RESPONSES]
        told = finetune(
            weights,
            texts,
            settings,
            trainer,
            tmp_path / name,
            seed=0,
            key="k",
            replay=texts[::-1],
            log_step=lambda step, _: logged.append(step),
        )
        return told, (tmp_path / name / "adapter_model.safetensors").read_bytes()

    logged = []
    whole = trained("whole", replace(trainer, max_batch_tokens=2048))
    noting = resumable(tmp_path / "journal", max_batch_tokens=2048)
    breaking(Finetuner, "accumulate", at)
    with pytest.raises(BrokenOff):
        trained("other", noting)
    logged.clear()
    steps = breaking(Finetuner, "accumulate", None)
    assert whole == trained("other", noting)
    assert logged == list(range(at - at % 3, 9)) == [at - at % 3 + step for step in range(len(steps))]
    assert 1 == len(list(noting.journal.folder.iterdir()))
    breaking(Finetuner, "accumulate", 0)  # of one that is over, nothing is done again
    assert whole == trained("again", noting)


def test_a_damaged_checkpoint_is_not_taken(tmp_path):
    journal = Journal(tmp_path)
    journal.replace_checkpoint("k", lambda file: file.write_bytes(b"first"))
    journal.replace_checkpoint("k", lambda file: file.write_bytes(b"second"))
    file = journal.checkpoint("k")
    assert [b"second"] == [each.read_bytes() for each in tmp_path.iterdir()]
    file.write_bytes(b"secon")
    assert journal.checkpoint("k") is None
    assert journal.checkpoint("other") is None
