"""A key changes with all that decides a result, code included, and with nothing else."""

import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import tiny
from tests.edited import ROOT, edited
from tests.unit.config.test_schema import composed
from tskd.config.build import build
from tskd.engines.continuous_batching import ContinuousBatching
from tskd.evaluation import lm_harness
from tskd.evaluation.answer_metrics import ExactMatch
from tskd.evaluation.lm_harness import HarnessEvaluator
from tskd.models.weights import LanguageModel
from tskd.modules.finetuner import LoraSettings
from tskd.modules.objectives import SoftLabels
from tskd.stages.answer import Answer
from tskd.stages.expand import FewShot
from tskd.stages.score import Score
from tskd.stages.screen import Screen
from tskd.stages.train import TrainLora
from tskd.stages.writers import LocalWriter
from tskd.storage import fingerprint
from tskd.storage.fingerprint import OutputFolder, cache_key
from tskd.tasks import Harness
from tskd.tasks.files import Files
from tskd.tasks.mbpp import Mbpp


@pytest.fixture
def stages(llama, adapter, trainer, tmp_path):
    weights = tiny.weights(llama)
    base, teacher = LanguageModel(weights), LanguageModel(weights, str(adapter))
    return {
        "expand": FewShot(LocalWriter(base, trainer), 0),
        "screen": Screen(base, teacher, trainer),
        "answer": Answer(teacher, trainer, 0),
        "score": Score(base, teacher, trainer),
        "train": TrainLora(base, trainer, tmp_path, 0, LoraSettings()),
        "objective": TrainLora(base, trainer, tmp_path, 0, LoraSettings(), objective=SoftLabels(), teacher=teacher),
        "evaluate": ExactMatch(Files("seeds.txt"), [], trainer, 8),
        "engine": ContinuousBatching(),
        "code": ExactMatch(Mbpp(allow_code_execution=True, unsandboxed=True), [], trainer, 8),
    }


def changed(stages, *edit):
    before = {name: cache_key(stage) for name, stage in stages.items()}
    with edited(*edit):
        return {name for name, stage in stages.items() if cache_key(stage) != before[name]}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tskd/models/templates.py", 'f"Question: {prompt.text}', 'f"Q: {prompt.text}'),
        ("tskd/models/templates.py", "The prompt below was rewritten", "This prompt was rewritten"),
        ("tskd/modules/trainer.py", "WORKING_MEMORY = 0.5", "WORKING_MEMORY = 0.6"),
        ("tskd/records.py", '"\\0".join(parts)', '"\\1".join(parts)'),
        ("tskd/models/logprobs.py", "CHUNK = 256", "CHUNK = 128"),
    ],
)
def test_an_edit_of_what_all_stages_reach_changes_all_keys(stages, file, old, new):
    assert changed(stages, file, old, new) == stages.keys()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("tskd/stages/near_duplicates.py", "found = words(text)", "found = ()", {"expand"}),
        ("tskd/stages/writers.py", "self.model, text), key)", 'self.model, text), "")', {"expand"}),
        ("tskd/stages/select/stage.py", "MIN_SEEDS = 3", "MIN_SEEDS = 4", {"screen"}),
        ("tskd/stages/answer.py", "answer.text.strip()", "answer.text", {"answer", "evaluate", "code"}),
        (
            "tskd/modules/lora.py",
            "batch_size: PositiveInt = 8",
            "batch_size: PositiveInt = 9",
            {"train", "objective"},
        ),
        ("tskd/tasks/files.py", "answer is not None and", "answer is None or", {"evaluate"}),
        ("tskd/engines/continuous_batching.py", "temperature == 0", "temperature < 1", {"engine"}),
        ("tskd/tasks/sandbox/child.py", "import_module(name)", "None", {"code"}),
    ],
)
def test_an_edit_changes_the_keys_of_the_stages_that_reach_it(stages, file, old, new, expected):
    assert changed(stages, file, old, new) == expected


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tskd/report/tables.py", "def ", "def another_"),
        ("tskd/config/cost_estimate.py", "return", "raise"),
        ("tskd/stages/answer.py", '"""2. Answer: the teacher responds to each prompt."""', '"""Answers."""'),
        ("tskd/stages/answer.py", '"""Greedy by default: ', '"""By default greedy: '),
        (
            "tskd/stages/answer.py",
            '        """One response for each prompt, in the order given; one ',
            '        """One ',
        ),
        ("tskd/models/templates.py", "# A space before the text", "# A blank before the text"),
        ("tskd/models/templates.py", "        return self._inert(", "\n        return self._inert(  # so\n"),
    ],
)
def test_an_edit_of_reports_docstrings_comments_and_layout_changes_no_key(stages, file, old, new):
    assert not changed(stages, file, old, new)


@pytest.mark.parametrize("package", fingerprint.PACKAGES)
def test_another_version_of_a_library_is_another_key(stages, monkeypatch, package):
    before, real = cache_key(stages["answer"]), fingerprint.version
    monkeypatch.setattr(fingerprint, "_versions", fingerprint._versions.__wrapped__)
    assert before == cache_key(stages["answer"])
    monkeypatch.setattr(fingerprint, "version", lambda name: "0.0" if name == package else real(name))
    assert before != cache_key(stages["answer"])


@dataclass(frozen=True)
class OfNoData:
    def harness(self):
        return Harness("tskd_mbpp", "pass_at_1", "none", {})

    def examples(self):
        return []


def test_an_evaluation_by_the_harness_knows_its_files_and_its_version(trainer, tmp_path, monkeypatch):
    evaluator = HarnessEvaluator(OfNoData(), [], trainer, 8)
    before = cache_key(evaluator)
    monkeypatch.setattr(lm_harness, "TASKS", Path(shutil.copytree(lm_harness.TASKS, tmp_path / "moved")))
    assert before == cache_key(evaluator)
    with (tmp_path / "moved" / "tskd_mbpp.yaml").open("a") as file:
        file.write("# edited")
    assert before != (edited_file := cache_key(evaluator))
    monkeypatch.setattr(lm_harness, "version", lambda _: "0.0")
    assert cache_key(evaluator) not in (before, edited_file)


KEY = """
from tskd.stages.select.subsets import KeepAll
from tskd.storage.fingerprint import cache_key
print(cache_key(KeepAll()))
"""


def test_a_package_that_is_edited_on_disk_has_other_keys_and_one_that_is_moved_has_not(tmp_path):
    def key(folder):
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.check_output([sys.executable, "-c", KEY], cwd=folder, env=environment, text=True)

    def edit(name, old, new):
        text = (copy / "tskd" / name).read_text()
        assert old in text
        (copy / "tskd" / name).write_text(text.replace(old, new))
        return key(copy)

    for name in ("first", "second"):
        shutil.copytree(ROOT / "tskd", tmp_path / name / "tskd", ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    before, copy = key(tmp_path / "first"), tmp_path / "second"
    assert before == key(copy)
    assert before == edit("report/tables.py", "def ", "def another_")
    assert before == edit("metrics/faults.py", "    ", "    # Once more.\n    ")
    assert before != edit("metrics/faults.py", "return ", "return not ")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The key of ``my_stage.Mine``, whose files are given by name; each call is another process's, in another place."""

    def own(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            file = folder / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(fingerprint, "_sources", {})
        for name in [name for name in sys.modules if name.partition(".")[0] in ("my_stage", "my_help", "my_package")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(folder)
        return cache_key(importlib.import_module("my_stage").Mine())

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return own


STAGE = '''"""A stage."""
{}
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    """Of a user."""

    def __call__(self, prompts):
        {}
        return []
'''


def test_a_users_own_module_counts_and_its_docstrings_do_not(own):
    text = STAGE.format("", "")
    before = own({"my_stage": text})
    assert before == own({"my_stage": text})
    assert before == own({"my_stage": text.replace("Of a user.", "Mine.").replace("return", "\n        return")})
    assert before == own({"my_stage": text, "my_help": "unrelated = 1"})
    assert before != own({"my_stage": text.replace("[]", "[1]")})


@pytest.mark.parametrize(
    ("above", "within"),
    [
        ("import my_help", ""),
        ("from my_help import level", ""),
        ("from my_help import *", ""),
        ("", "import my_help"),
        ("", "from my_help import level"),
        ("import my_package.within", ""),
        ("from my_package import within", ""),
        ("", "from my_package.within import level"),
    ],
)
def test_what_a_users_own_module_imports_counts_closed(own, above, within):
    stage, package = STAGE.format(above, within), "from .further import level"
    help_ = "import my_package.within\nlevel = 1"

    def key(help_=help_, package=package, further="level = 1", start=""):
        within = {"__init__": start, "within": package, "further": further}
        files = {f"my_package/{name}": text for name, text in within.items()}
        return own({"my_stage": stage, "my_help": help_, **files})

    before = key()
    assert before == key()
    assert before == key(further="level = 1  # for now")
    assert before != key(further="level = 2")
    assert before != key(package=package + "\nlevel += 1")
    assert before != key(start="print()")
    assert (before != key(help_=help_ + "1")) is ("my_help" in stage)


def test_an_installed_package_counts_by_nothing_but_its_name(own, tmp_path, monkeypatch):
    installed = tmp_path / "lib" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.syspath_prepend(installed)
    keys = set()
    for level in (1, 2):
        (installed / "my_help.py").write_text(f"level = {level}")
        keys.add(own({"my_stage": STAGE.format("import my_help", "")}))
    assert 1 == len(keys)


def test_a_loaded_module_counts_as_it_was_loaded(own, monkeypatch):
    text = STAGE.format("", "")
    before = own({"my_stage": text})
    module = sys.modules["my_stage"]
    Path(module.__file__).write_text(text.replace("[]", "[1]"))
    assert before == cache_key(module.Mine())
    assert before != cache_key(importlib.reload(module).Mine())


def test_a_class_without_a_source_is_never_found_again(monkeypatch):
    monkeypatch.setattr(Reads, "__module__", "of_no_file")
    assert cache_key(Reads(Path())) != cache_key(Reads(Path()))


@dataclass(frozen=True)
class Reads:
    source: Path
    output: Path | None = field(default=None, compare=False)

    def __call__(self, prompts):
        return []


def test_a_path_counts_by_its_content_and_not_by_its_place(tmp_path):
    for name, text in {"a": "text", "b": "text", "c": "other text"}.items():
        (tmp_path / name / "within").mkdir(parents=True)
        (tmp_path / name / "within" / "file.txt").write_text(text)
    for place in ("", "within", "within/file.txt"):
        one, moved, other = (cache_key(Reads(tmp_path / name / place)) for name in "abc")
        assert one == moved != other
    before = cache_key(Reads(tmp_path / "a"))
    (tmp_path / "a" / "within" / "file.txt").rename(tmp_path / "a" / "within" / "renamed.txt")
    assert before != cache_key(Reads(tmp_path / "a"))
    file = tmp_path / "b" / "within" / "file.txt"
    before = cache_key(Reads(file))
    file.write_text("edited in place")
    assert before != cache_key(Reads(file))
    file.unlink()
    assert cache_key(Reads(file)) not in (before, cache_key(Reads(tmp_path / "c" / "within" / "file.txt")))


def test_where_a_stage_writes_does_not_count(tmp_path):
    (tmp_path / "file.txt").write_text("text")
    before = cache_key(Reads(tmp_path / "file.txt"))
    assert before == cache_key(Reads(tmp_path / "file.txt", output=tmp_path))
    assert cache_key(Reads(OutputFolder(tmp_path))) == cache_key(Reads(OutputFolder(tmp_path / "none")))


MINE = """
from dataclasses import dataclass
from pathlib import Path
from tskd.models.weights import LanguageModel

@dataclass(frozen=True)
class Mine:
    target: LanguageModel
    folder: Path

    def __call__(self, corpus, dropped, index):
        ...
"""


@pytest.mark.parametrize("training", ["my_training.Mine", "tskd.stages.train.DiffVector"])
def test_the_folder_of_a_run_does_not_count_in_a_training_of_ones_own(tmp_path, monkeypatch, training):
    (tmp_path / "my_training.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    cfg = composed("allow=my_training", f"+training._target_={training}")
    runs = [build(cfg, tmp_path / name) for name in ("run", "other")]
    assert runs[0].stages.train.folder == tmp_path / "run"
    assert 1 == len({cache_key(run.stages.train) for run in runs})
