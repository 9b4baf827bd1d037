"""Whatever a file or a configuration holds: it works, or one line says what is wrong, before a model is loaded."""

import json
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tskd.config import hydra_plugins, trust
from tskd.config.build import build
from tskd.errors import TskdError
from tskd.records import Adapter, Expansion, Graded, Message, Prompt, Response, Scored
from tskd.report.runs import runs_in
from tskd.results import finished_run
from tskd.results.train_overlap import audit
from tskd.storage import atomic_files, status
from tskd.tasks.files import Files

SETTINGS = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))


def composed(*overrides):
    hydra_plugins.register()
    with initialize_config_dir(hydra_plugins.folder(), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [*overrides, "store=off"]), resolve=True)


@pytest.fixture(scope="module")
def default():
    return composed()


def said(work):
    """The line in which ``work`` is refused, or ``None``; anything but a line of ours is a failure."""
    line = None
    try:
        work()
    except TskdError as error:
        line = str(error)
    assert line is None or (len(line) > 10 and "\n" not in line)
    return line


# One by one

SEEDS = {
    "": "has no prompts",
    "\n\n": "has no prompts",
    '{"prompt": "a"': "line 1: not JSON",
    '{"prompt": "a"}}': "line 1: not JSON",
    "{'prompt': 'a'}": "line 1: not JSON",
    "prompt: a": "line 1: not JSON",
    '{"prompt": "a", "prompt": "b"}': "line 1: not JSON ('prompt' is there twice)",
    '{"messages": [{"role": "user", "role": "user", "content": "a"}]}': "('role' is there twice)",
    '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}': "both `prompt` and `messages`",
    "[" * 5000: "line 1: not JSON",
    '{"a":' * 5000 + "1" + "}" * 5000: "line 1: not JSON",
    '["a"]': "a list where an object",
    "null": "a NoneType where an object",
    "17": "a int where an object",
    '"a"': "a str where an object",
    "{}": "no text in `prompt` or `messages` (found: nothing)",
    '{"text": "a"}': "no text in `prompt` or `messages` (found: text)",
    '{"Prompt": "a"}': "no text in `prompt` or `messages` (found: Prompt)",
    '{"prompt": ""}': "no text in `prompt`",
    '{"prompt": " \\n "}': "no text in `prompt`",
    '{"prompt": "\\u200b\\u202e"}': "no text in `prompt`",
    '{"prompt": "\\u0000"}': "no text in `prompt`",
    '{"prompt": 3}': "no text in `prompt`",
    '{"prompt": {"text": "a"}}': "no text in `prompt`",
    '{"prompt": "\\ud800"}': "half of a surrogate pair",
    '{"messages": []}': "`messages` must be a list of at least one",
    '{"messages": {"role": "user"}}': "`messages` must be a list of at least one",
    '{"messages": [null]}': "each message needs a `role`",
    '{"messages": [{"role": "USER", "content": "a"}]}': "each message needs a `role`",
    '{"messages": [{"role": "user", "content": null}]}': "each message needs a `role`",
    '{"messages": [{"role": "system", "content": "a"}]}': "the last message is the system's",
    '{"prompt": "a"}\n{"prompt": "a"}': "All 2 seeds in",
    '{"prompt": "a"}\n\n{"prompt": "b"': "line 3: not JSON",
}
QUESTIONS = {
    '{"prompt": "a", "answer": 3}': "line 1: `answer` is 3; it must be a string",
    '{"prompt": "a", "answer": ["b"]}': "line 1: `answer` is ['b']",
    '{"prompt": "a", "answer": "b", "answer": "c"}': "'answer' is there twice",
    '{"prompt": "a", "split": "teacher"}': "`split` is 'teacher', which names a model's accuracy",
    '{"answer": "b"}': "no text in `prompt`",
}
OVERRIDES = {
    "threshold=nan": "`threshold` is nan",
    "threshold=inf": "`threshold` is inf",
    "threshold=high": "`threshold` is 'high'",
    "threshold=true": "`threshold` is True",
    "threshold=null": "`threshold` is None",
    "iterations=0": "`iterations` is 0",
    "iterations=often": "`iterations` is 'often'",
    "iterations=1.5": "`iterations` is 1.5",
    "stop.coverage=1": "`stop.coverage` is 1",
    "stop.max_iterations=0": "`stop.max_iterations` is 0",
    "drop=[odd]": "`drop` is ['odd']",
    "max_hours=-1": "`max_hours` is -1",
    "training.not_finite=ignore": "`training.not_finite` is 'ignore'",
    "training.min_examples=0": "`training.min_examples` is 0",
    "answer.top_p=0": "`answer.top_p` is 0",
    "name=''": "`name` is ''",
    "name=.hidden": "`name` is '.hidden'",
    "name='../x'": "`name` is '../x'",
    "name='a b'": "`name` is 'a b'",
    "store_limit_gb=-1": "`store_limit_gb` is -1",
    "allow='*'": "`allow` has '*'",
    "selection._target_=os.system": "`selection._target_` names os.system, whose code would run",
    "selection._target_=tskd.nowhere.X": "which names no class",
    "selection._target_=tskd.experiment.log": "which is no dataclass",
    "selection.threshold=0.1": "set `threshold` alone",
    "+selection.recall=2": "`selection.recall` is 2",
    "+selection.by=1": "`selection.by` is unknown",
    "expansion.num_drafts=0": "`expansion.num_drafts` is 0",
    "expansion.num_drafts=1e99": "`expansion.num_drafts` is 1e+99",
    "expansion.writer=nobody": "`expansion.writer` is 'nobody'",
    "+expansion.typo=1": "`expansion.typo` is unknown",
    "expansion.max_rouge_l=0": "`expansion.max_rouge_l` is 0",
    "training.lora.rank=0": "`training.lora.rank` is 0",
    "training.lora.learning_rate=-1": "`training.lora.learning_rate` is -1",
    "training.lora=null": "`training.lora` is None",
    "~training.replay": "`training.replay` is missing",
    "training.each_iteration=perhaps": "`training.each_iteration` is 'perhaps'",
    "training.objective=nll": "`training.objective` is 'nll'; name a class",
    "task.response_tokens=many": "`task.response_tokens` is 'many'",
    "task.response_tokens=0": "`task.response_tokens` is 0",
    "trainer.devices=2": "`trainer.devices` is 2, and the number of processes is 1",
    "trainer.accelerator=abacus": "`trainer.accelerator` is 'abacus'",
    "tracking.mode=maybe": "`tracking.mode` is 'maybe'",
    "tracking.project=a/b": "`tracking.project` is 'a/b'",
    "tracking.timeout=0": "`tracking.timeout` is 0",
    "target.checkpoint.dtype=int3": "has dtype 'int3'",
    "target.checkpoint.attention=owner/kernel": "would run code from the hub",
    "target.checkpoint.template=riddle": "There is no template 'riddle'",
    "target.checkpoint.template=chat": "has no chat template",
    "target.checkpoint.path=/nowhere": "There is no folder /nowhere",
    "target.checkpoint.path=a/b/c": "There is no folder a/b/c",
    "target=llama3": "is gated: accept its licence",
    "teacher.adapter=/nowhere": "There is no folder /nowhere for adapter",
    "base=atlas_neox": "made for atlas/llama, not for 'atlas_neox'",
    "task.response_tokens=9999": "with a response of 9999 tokens, needs",
    "expansion.max_new_tokens=9999": "and 9999 new tokens, needs",
}


def tried(tmp_path, kind, given):
    if kind == "overrides":
        made = build(composed("trainer.accelerator=cpu", *([given] if given else [])), tmp_path)
        _ = made.trainer.device
        made.check_models()
        return
    (tmp_path / "f.jsonl").write_text(given)
    task = Files(*([str(tmp_path / "f.jsonl")] if kind == "seeds" else ["", str(tmp_path / "f.jsonl")]))
    _ = task.seed_prompts() if kind == "seeds" else task.questions()


BAD = [
    *(("seeds", *pair) for pair in SEEDS.items()),
    *(("questions", *pair) for pair in QUESTIONS.items()),
    *(("overrides", *pair) for pair in OVERRIDES.items()),
]


@pytest.mark.parametrize(("kind", "given", "expected"), BAD, ids=[f"{kind}: {given[:50]!r}" for kind, given, _ in BAD])
def test_what_is_wrong_is_one_line_that_says_so(tmp_path, kind, given, expected):
    assert expected in (said(lambda: tried(tmp_path, kind, given)) or "")


def test_what_is_right_is_not_refused(tmp_path):
    assert said(lambda: tried(tmp_path, "overrides", "")) is None
    assert said(lambda: tried(tmp_path, "seeds", '{"prompt": "a"}')) is None
    assert len(BAD) >= 60


# Seeds and questions

INVISIBLE = st.sampled_from(
    ["\u200b", "\u202e", "\ufeff", "\u2066", "\u2028", "\x00", "\x85", "\r", "\u0301", "\U000e0041"]
)
TEXT = st.text(max_size=40) | st.lists(
    INVISIBLE | st.sampled_from(["a", "שלום", "مرحبا", "👩‍🚀", " "]), max_size=9
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ROW = st.fixed_dictionaries(
    {}, optional={"prompt": TEXT | JSON, "messages": JSON, "answer": TEXT | JSON, "split": JSON}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT | JSON}
)


def as_lines(rows, **options):
    return "\n".join(json.dumps(row, **options) for row in rows)


@SETTINGS
@given(
    st.lists(ROW | st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}) | JSON, min_size=1, max_size=6)
)
def test_any_json_is_read_whole_or_refused_by_its_line(tmp_path, rows):
    (tmp_path / "f.jsonl").write_text(as_lines(rows))
    for read in (Files(str(tmp_path / "f.jsonl")).seed_prompts, Files("", str(tmp_path / "f.jsonl")).questions):
        line = said(read)
        assert line is None or "f.jsonl" in line
        if line is None:  # and nothing is dropped in silence
            assert len(Files("", str(tmp_path / "f.jsonl")).questions()) == len(rows)


@SETTINGS
@given(st.lists(TEXT.filter(lambda text: text.strip()), min_size=1, max_size=6, unique_by=lambda text: text.strip()))
def test_every_text_that_can_be_seen_is_a_seed_as_it_is(tmp_path, texts):
    (tmp_path / "f.jsonl").write_text(as_lines([{"prompt": text} for text in texts]))
    found: list[Prompt] = []
    line = said(lambda: found.extend(Files(str(tmp_path / "f.jsonl")).seed_prompts()))
    if line is None:
        assert [text.strip() for text in texts] == [prompt.text for prompt in found]
    else:
        assert "no text in" in line or "surrogate" in line


@SETTINGS
@given(st.binary(max_size=200) | st.tuples(st.binary(max_size=20), st.just(b'\n{"prompt": "a"}\n')).map(b"".join))
@pytest.mark.parametrize("name", ["f.jsonl", "f.txt"])
def test_any_bytes_are_read_or_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    said(Files(str(tmp_path / name)).seed_prompts)
    said(Files("", str(tmp_path / name)).questions)


def test_a_file_that_is_cut_off_anywhere_is_refused_or_has_its_whole_lines(tmp_path):
    rows = [{"prompt": f"question {n}: ä 🙂"} for n in range(3)]
    content = as_lines(rows, ensure_ascii=False).encode()
    for end in range(len(content)):
        (tmp_path / "f.jsonl").write_bytes(content[:end])
        lines = content[:end].split(b"\n")
        is_whole = lines[-1] in (b"", json.dumps(rows[len(lines) - 1], ensure_ascii=False).encode())
        line = said(Files(str(tmp_path / "f.jsonl")).seed_prompts)
        assert (line is None) == (is_whole and end > 0), (end, line)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1", "shift_jis", "cp1252"])
def test_other_encodings_are_refused_by_name(tmp_path, encoding):
    (tmp_path / "f.jsonl").write_bytes('{"prompt": "Größe in ¥"}'.encode(encoding, "replace").replace(b"?", b"\xff"))
    assert "cannot be read as UTF-8" in said(Files(str(tmp_path / "f.jsonl")).seed_prompts)


def test_a_hundred_thousand_seeds_are_read_each(tmp_path):
    (tmp_path / "f.jsonl").write_text(as_lines([{"prompt": f"question {n}?"} for n in range(100_000)]))
    assert 100_000 == len(Files(str(tmp_path / "f.jsonl")).seed_prompts())


def test_a_prompt_of_a_hundred_thousand_characters_has_no_room_and_is_told_so(tmp_path):
    (tmp_path / "f.jsonl").write_text(as_lines([{"prompt": "ab " * 33_334}, {"prompt": "short"}]))
    of_files = composed(
        "task=files", f"task.seeds={tmp_path / 'f.jsonl'}", "task.prompt_tokens=9", "task.response_tokens=9"
    )
    assert "The longest seed, with a response of 9 tokens, needs" in said(build(of_files, tmp_path).check_models)


# Configurations


def leaves(node, path=()):
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))


def replaced(node, path, value):
    return value if not path else {**node, path[0]: replaced(node[path[0]], path[1:], value)}


def without(node, path):
    if len(path) == 1:
        return {key: value for key, value in node.items() if key != path[0]}
    return {**node, path[0]: without(node[path[0]], path[1:])}


PATHS = [path for path in leaves(composed()) if path and path[0] not in ("store", "private_files")]


@settings(SETTINGS, max_examples=150)
@given(st.sampled_from(PATHS), JSON | st.sampled_from([-1, 0, 2**70, 1e308, float("nan"), "\x00", "x" * 5000]))
def test_any_value_in_any_place_of_a_configuration_is_taken_or_refused(tmp_path, default, path, value):
    line = said(lambda: build(replaced(default, path, value), tmp_path))
    assert line is None or "`" in line or repr(value)[:20] in line


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_setting_that_is_missing_is_said_or_has_a_default(tmp_path, default, path):
    line = said(lambda: build(without(default, path), tmp_path))
    assert line is None or path[-1] in line or "_target_" in line


# What is read back


RECORD = {
    Prompt: Prompt("p", (Message("user", "u"),), 1, ("a",)),
    Response: Response(Prompt("p"), "r"),
    Scored: Scored(Response(Prompt("p"), "r"), 1.0, 0.5, 3, {"kl": 0.1}, (0.1,)),
    Graded: Graded("q", "r", True),
    Adapter: Adapter("iteration_0/adapter", "t", 1, 0.5),
    Expansion: Expansion((Prompt("p"),)),
}


@SETTINGS
@given(JSON)
@pytest.mark.parametrize("kind", RECORD, ids=lambda kind: kind.__name__)
def test_any_json_is_a_record_or_refused_by_its_line(tmp_path, kind, value):
    good = asdict(RECORD[kind])
    values = [value, *({**good, key: value} for key in good)]
    for each in values:
        (tmp_path / "f.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(each)}\n")
        line = said(lambda: atomic_files.read_lines(kind, tmp_path / "f.jsonl"))
        assert line is None or f"f.jsonl, line 2 is no {kind.__name__}" in line


@pytest.mark.parametrize("kind", RECORD, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("content", [b"{", b"[" * 10**5, b"\xff\xfe", b"null\n", b'{"a": 1' + b"0" * 5000 + b"}"])
def test_a_damaged_file_is_refused_by_name(tmp_path, kind, content):
    (tmp_path / "f.jsonl").write_bytes(content)
    assert "f.jsonl" in said(lambda: atomic_files.read_lines(kind, tmp_path / "f.jsonl"))
    assert "f.jsonl" in said(lambda: atomic_files.read_json(kind, tmp_path / "f.jsonl"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"a: 1\na: 2\n", b"- a\n", b"[" * 3000, b"a: ${b}\n", b"a: !!python/object:x.Y"],
)
def test_a_damaged_configuration_of_a_run_is_one_line_for_all_who_read_it(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    for read in (
        lambda: finished_run.FinishedRun.read(tmp_path),
        lambda: audit(tmp_path),
        lambda: [*runs_in(tmp_path)],
    ):
        line = said(read)
        assert "config.yaml" in line


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 10**5])
def test_a_damaged_status_is_none(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    assert not status.completed(tmp_path)


@settings(SETTINGS, max_examples=30)
@given(JSON)
def test_any_value_may_be_looked_through_for_the_names_of_classes(value):
    said(lambda: trust.check({"x": value}, []))
    said(lambda: trust.check({}, value))
