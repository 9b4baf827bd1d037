"""The public benchmarks: which questions are on which side, what counts as correct, and that the harness agrees."""

import dataclasses
import hashlib
import json
import random
import sys
from types import SimpleNamespace

import pytest

from tests import fabricated
from tests.benchmarks import KINDS, REAL, SMALL, code_allowed, needs_real_data
from tests.unit.config.test_schema import composed
from tskd.config import schema
from tskd.errors import ConfigError, TaskError
from tskd.records import Prompt, Question
from tskd.tasks import Benchmark, bbh, mmlu
from tskd.tasks.atlas import Atlas
from tskd.tasks.bbh import Bbh
from tskd.tasks.files import Files
from tskd.tasks.gsm8k import Gsm8k
from tskd.tasks.mbpp import Mbpp, code_in
from tskd.tasks.mmlu import Mmlu
from tskd.tasks.sandbox import isolated_tests


def prints(questions):
    return {question.prompt.fingerprint for question in questions}


def digest(questions):
    pairs = [[question.prompt.text, question.answer] for question in questions]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


# Splits


@needs_real_data
@pytest.mark.parametrize(
    ("task", "private", "held_out"),
    [
        (
            Bbh(str(REAL)),
            (3255, "c1a15e37e78eb0768ebb86d0188c4ee45d7de7fa428a65b8eddfd2d319a18acc"),
            (3256, "2e7ae098a8b9c88a8b46a2c3b513d2d0753dc377918b39430cf5c98fab47da85"),
        ),
        (
            Mmlu(str(REAL)),
            (7286, "3a7678bcf7940d558b83905dbfd1bc3de9a9ee1461b2e2d93232935efbc7c94d"),
            (7035, "0630a2ff6eb43c46d1293c7b65a462f45a4545dbe8409f26548be67d29a7ea9d"),
        ),
        (
            Gsm8k(str(REAL)),
            (250, "3e3081d190ba5efcf2eb8a3d52cc59809bde50170646186b70ae73b553f4c685"),
            (1319, "0abf3d0fc9cf6992e9849b56884a631cffa81a3f583430d025d1dc1d310a9f41"),
        ),
        (
            Gsm8k(str(REAL), chain_of_thought=False),
            (250, "9ca50121bbe684ed861b82f27648c60d416cb9c35743ff5261e0a4eec502d8ae"),
            (1319, "edfc2d363319fc2752ee9f2f7904c9bf13e9e14ca6d55fb6175aea7715fc5ed6"),
        ),
        (
            code_allowed(str(REAL)),
            (371, "59e8ccb7adc1ad632d5b7c74ad2578993069ccd28f50a81342ad7f135c689b5f"),
            (500, "65e31cbdf7e900a1186b170e1642da3d3a37c38254583e98c234380526fd30ef"),
        ),
    ],
    ids=["bbh", "mmlu", "gsm8k", "gsm8k without chain of thought", "mbpp"],
)
def test_the_splits_of_the_real_files_are_these_for_ever(task, private, held_out):
    assert private == (len(task.examples()), digest(task.examples()))
    assert held_out == (len(task.questions()), digest(task.questions()))


def test_no_held_out_question_is_private(task):
    assert not prints(task.examples()) & prints(task.questions())
    assert task.examples()
    assert task.questions()


def test_seeds_are_different_private_prompts(kind, task):
    seeds = [prompt.fingerprint for prompt in task.seed_prompts()]
    assert len(seeds) == len(set(seeds)) == 5 * len({question.group for question in task.examples()})
    assert not set(seeds) & prints(task.questions())
    if kind != "mbpp":  # it publishes a split to prompt with
        assert set(seeds) <= prints(task.examples())


@pytest.mark.parametrize("kind", ["bbh", "mmlu"])
def test_the_order_of_the_files_changes_nothing(kind, made_up, monkeypatch):
    expected = KINDS[kind](made_up, **SMALL[kind])
    module, reader = (bbh, "json_rows") if kind == "bbh" else (mmlu, "csv_rows")
    read = getattr(module, reader)
    monkeypatch.setattr(module, reader, lambda *names: random.Random(1).sample(rows := read(*names), len(rows)))
    shuffled = KINDS[kind](made_up, **SMALL[kind])
    assert expected.questions() == shuffled.questions()
    assert sorted(expected.examples(), key=str) == sorted(shuffled.examples(), key=str)


def test_bbh_is_halved_and_a_repeated_prompt_stays_on_one_side(made_up):
    task = Bbh(made_up, subset="navigate")
    assert 12 == len(prints(task.examples())) == len(prints(task.questions()))
    assert 25 == len(task.examples()) + len(task.questions())


def test_mmlu_gives_the_dev_questions_to_the_private_side_first(made_up):
    task = Mmlu(made_up, subset=fabricated.TWINS[1])
    assert [True] * 5 + [False] * 5 == [" dev " in question.prompt.text for question in task.examples()][:10]
    assert not any(" dev " in question.prompt.text for question in task.questions())


def test_a_question_that_one_subject_holds_out_is_private_in_none(made_up):
    shared = Prompt("What is shared?\nA. this\nB. that\nC. these\nD. those").fingerprint
    one, both = (Mmlu(made_up, subset=subset) for subset in (fabricated.TWINS[0], fabricated.TWINS))
    assert shared in prints(one.examples())
    assert (shared in prints(both.questions())) is not (shared in prints(both.examples()))


@needs_real_data
def test_what_is_held_out_does_not_depend_on_the_other_subsets():
    everything = Mmlu(str(REAL)).questions()
    for subject in fabricated.TWINS:
        assert Mmlu(str(REAL), subset=subject).questions() == [q for q in everything if q.group == subject]


def test_gsm8k_drops_a_training_problem_that_is_in_the_test_set(made_up):
    assert 11 == len(Gsm8k(made_up).examples())
    assert 13 == len(Gsm8k(made_up).questions())


def test_gsm8k_answers_are_solutions_without_annotations_or_the_number_alone(made_up):
    (first, *_), (bare, *_) = Gsm8k(made_up).examples(), Gsm8k(made_up, chain_of_thought=False).examples()
    assert "It holds 1+1000=1001 fruits.\n#### 1,001" == first.answer
    assert "1,001" == bare.answer
    assert first.prompt == bare.prompt


def test_mbpp_has_the_published_splits_and_drops_what_the_test_split_asks_for_too(made_up):
    task = code_allowed(made_up)
    assert [f"add {i}." in q.prompt.text for i, q in zip(range(11, 21), task.questions(), strict=True)] == [True] * 10
    assert 11 == len(task.examples())
    assert [f"Write a function to add {i}." in p.text for i, p in enumerate(task.seed_prompts(), 1)] == [True] * 5


def test_mbpp_prompts_have_the_tests_and_answers_have_plain_line_ends(made_up):
    question = code_allowed(made_up).examples()[0]
    assert question.prompt.text == (
        "You are an expert Python programmer, and here is your task: Write a function to add 601. Your code should "
        "pass these tests:\n\nassert add(0) == 601\nassert add(1) == 602\nassert add(5) == 606"
    )
    assert question.answer == "def add(x):\n    return x + 601"


def test_mmlu_prompts_have_lettered_choices(made_up):
    question = Mmlu(made_up, subset=fabricated.TWINS[1]).examples()[1]
    assert question.prompt.text == 'Which, in "college_medicine",\nis dev 1?\nA. one\nB. two\nC. three\nD. four'
    assert question.answer == "B"


def test_limit_and_num_private_count_in_each_subset(made_up):
    whole, cut = Bbh(made_up, subset="navigate"), Bbh(made_up, subset=("navigate", "snarks"), limit=3, num_private=4)
    assert whole.questions()[:3] == cut.questions()[:3]
    assert whole.examples()[:4] == cut.examples()[:4]
    assert (6, 8) == (len(cut.questions()), len(cut.examples()))
    assert {"navigate", "snarks"} == {question.group for question in cut.questions()}


def test_limit_does_not_let_a_held_out_question_become_private(made_up):
    assert Gsm8k(made_up).examples() == Gsm8k(made_up, limit=1).examples()


def test_subsets_are_asked_in_the_benchmarks_order_whatever_the_callers():
    assert Bbh(subset=("snarks", "navigate")).subsets == ["navigate", "snarks"]
    assert len(Bbh().subsets) == 27
    sizes = {name: len(Mmlu(subset=name).subsets) for name in ("all", "stem", "humanities", "social_sciences", "other")}
    assert sizes == {"all": 57, "stem": 19, "humanities": 13, "social_sciences": 12, "other": 13}
    assert len(Mmlu(subset=("stem", "anatomy", "virology")).subsets) == 20


def test_labels_are_short():
    assert ["bbh-all", "mmlu-stem", "bbh-navigate+1", "gsm8k"] == [
        task.label for task in (Bbh(), Mmlu(subset="stem"), Bbh(subset=("navigate", "snarks")), Gsm8k())
    ]


def test_the_benchmarks_are_benchmarks_and_the_other_tasks_are_not(task):
    assert isinstance(task, Benchmark)
    assert task.note
    assert not isinstance(Files("x"), Benchmark)
    assert not isinstance(Atlas(), Benchmark)


def test_only_in_the_embedded_world_may_synthetic_prompts_equal_held_out_ones(task):
    assert (True, True, False) == (task.drops_held_out, Files.drops_held_out, Atlas.drops_held_out)


# What is correct

ANSWERS = {
    "bbh": [
        ("(B)", "(B)", True),
        ("(B)", "\n (b). \nBecause it is.", True),
        ("(B)", "(C)\n(B)", False),
        ("valid", "VALID", True),
        ("] )", "])", False),
        ("yes", "", False),
        ("yes", " \n ", False),
    ],
    "gsm8k": [
        ("It is 2.\n#### 1,080", "So #### 1080", True),
        ("1,080", "That makes $1,080.", True),
        ("18", "First 3, then 18", True),
        ("18", "18, and not 3", False),
        ("18", "18.\n\nQuestion: And 3?", True),
        ("-4", "#### -4", True),
        ("18", "none", False),
        ("18", "", False),
    ],
    "mmlu": [
        ("B", "B", True),
        ("B", "The answer is (B).", True),
        ("B", "B. two, not A", True),
        ("B", "A or B", False),
        ("B", "b", False),
        ("B", "Because", False),
        ("B", "", False),
    ],
}


@pytest.mark.parametrize(
    ("kind", "answer", "response", "right"), [(kind, *case) for kind, cases in ANSWERS.items() for case in cases]
)
def test_an_answer_is_right_or_wrong(kind, answer, response, right):
    assert KINDS[kind]().is_correct(Question(Prompt("x"), answer), response) is right


def test_published_answers_are_correct_and_no_answer_is_not(kind, task):
    for question in task.examples()[: 3 if kind == "mbpp" else None]:
        assert task.is_correct(question, question.answer)
        assert not task.is_correct(question, "")


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here it is:\n```\nx = 1\ny = 2\n```\nand\n```\nz\n```", "x = 1\ny = 2\n"),
        ("```py\nx = 1", "x = 1"),
        ("", ""),
    ],
)
def test_code_is_taken_out_of_its_fences(response, code):
    assert code == code_in(response)


def test_mbpp_runs_nothing_unless_it_may():
    with pytest.raises(ConfigError, match="runs model-written code.*`task.allow_code_execution=true`"):
        Mbpp("x")


def test_mbpp_asks_for_a_sandbox_unless_that_is_declined(monkeypatch, made_up):
    asked, ran = [], []
    monkeypatch.setattr(isolated_tests, "check_available", lambda: asked.append(True))
    monkeypatch.setattr(isolated_tests, "run_tests", lambda *a, **k: ran.append((a, k)) or SimpleNamespace(passed=True))
    task = Mbpp(made_up, allow_code_execution=True)
    assert code_allowed(made_up)
    assert [True] == asked
    with_setup = task.examples()[-1]
    assert task.is_correct(with_setup, "```python\npass\n```")
    tests = ("assert add(0) == 611", "assert add(1) == 612", "assert add(5) == 616")
    assert [(("pass\n", tests, "base = 1"), {"unsandboxed": False})] == ran


# What is wrong is said


def test_a_wrong_root_says_what_was_looked_for(kind, tmp_path):
    with pytest.raises(
        TaskError, match=rf"no file .*/{kind}/.*TSKD_DATA.* must be the folder that holds {kind}/"
    ) as error:
        KINDS[kind](str(tmp_path), **SMALL[kind]).questions()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("bbh", "bbh/navigate.json", "{", r"navigate\.json: not JSON"),
        ("bbh", "bbh/navigate.json", "[]", "no list `examples`"),
        ("bbh", "bbh/navigate.json", '{"examples": [{"input": "a", "target": "b"}, 3]}', r"examples\[1\]: a int"),
        ("bbh", "bbh/navigate.json", '{"examples": [{"input": "a"}]}', r"examples\[0\]: no text in `target` .*input"),
        ("bbh", "bbh/navigate.json", '{"examples": []}', "bbh navigate has no held-out questions"),
        (
            "gsm8k",
            "gsm8k/train.jsonl",
            '{"question": "a", "answer": "b\\n#### 1"}\n{',
            r"train\.jsonl, line 2: not JSON",
        ),
        (
            "gsm8k",
            "gsm8k/train.jsonl",
            '{"question": "a", "answer": "b"}',
            "line 1: `answer` does not end in a line `#### N`",
        ),
        ("gsm8k", "gsm8k/test.jsonl", '\n{"question": "", "answer": "b\\n#### 1"}', "line 2: no text in `question`"),
        ("mbpp", "mbpp/mbpp.jsonl", '{"task_id": "11"}', "line 1: a number `task_id`"),
        (
            "mbpp",
            "mbpp/mbpp.jsonl",
            '{"task_id": 11, "test_list": []}',
            "line 1: a number `task_id` and a list of tests",
        ),
        ("mbpp", "mbpp/mbpp.jsonl", '{"task_id": 11, "test_list": ["a"], "text": 1}', "line 1: no text in `text`"),
        ("mbpp", "mbpp/mbpp.jsonl", '{"task_id": 11, "test_list": [1]}', "line 1: no text in `test_list`"),
        ("mmlu", "mmlu/test/college_medicine_test.csv", "q,a\n", r"test\.csv, line 1: the header must be question,"),
        ("mmlu", "mmlu/test/college_medicine_test.csv", ",".join(fabricated.COLUMNS) + "\na,b\n", "line 2: 2 columns"),
        ("mmlu", "mmlu/test/college_medicine_test.csv", ",".join(fabricated.COLUMNS) + '\n"a', "line 2: not CSV"),
        (
            "mmlu",
            "mmlu/test/college_medicine_test.csv",
            ",".join(fabricated.COLUMNS) + "\na,b,c,d,e,4",
            "`answer` is 4",
        ),
        ("mmlu", "mmlu/dev/college_medicine_dev.csv", b"\xff", "cannot be read as UTF-8"),
    ],
)
def test_a_file_of_the_wrong_format_is_named_with_the_place(kind, name, content, said, tmp_path):
    root = fabricated.write_all(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TaskError, match=said) as error:
        KINDS[kind](root, **SMALL[kind]).questions()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Bbh(subset="boolean_expression"),
            "'boolean_expression', and bbh has no such one; nearest are boolean_expr",
        ),
        (lambda: Mmlu(subset=("anatomy", "maths")), "'maths', and mmlu has no such one; .*mathematics"),
        (lambda: Mmlu(subset=()), "is empty"),
        (lambda: Bbh(num_fewshot=3), "is 3 with 27 subsets"),
    ],
)
def test_a_wrong_subset_is_refused_before_anything_is_read(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_more_seeds_than_there_are_prompts_is_an_error_with_both_numbers(kind, made_up):
    task = KINDS[kind](made_up, num_seeds=100, **SMALL[kind])
    with pytest.raises(
        TaskError, match=rf"`task.num_seeds` is 100, and the private split of {kind}.* has 1\d? different"
    ):
        task.seed_prompts()
    if kind != "mbpp":
        with pytest.raises(TaskError, match=r"has 3 different prompts \(`task.num_private` is 3\)"):
            KINDS[kind](made_up, num_private=3, **SMALL[kind]).seed_prompts()


# From the hub


HUB = {
    "bbh": {("SaylorTwift/bbh", "navigate", "test"): fabricated.bbh("navigate")},
    "gsm8k": {("openai/gsm8k", "main", split): fabricated.gsm8k(split) for split in ("train", "test")},
    "mbpp": {
        ("google-research-datasets/mbpp", "full", split): [fabricated.program(number) for number in numbers]
        for split, numbers in {"prompt": range(1, 11), "test": range(11, 21), "train": range(601, 611)}.items()
    },
    "mmlu": {
        ("cais/mmlu", "virology", split): [
            {"question": q, "subject": "virology", "choices": choices, "answer": answer}
            for q, *choices, answer in fabricated.mmlu("virology", split)
        ]
        for split in ("dev", "test")
    },
}
SUBSET = {"bbh": {"subset": "navigate"}, "mmlu": {"subset": "virology"}, "gsm8k": {}, "mbpp": {}}


def test_the_hub_and_the_files_give_the_same_questions(kind, monkeypatch, tmp_path):
    load = SimpleNamespace(load_dataset=lambda name, config, *, split: HUB[kind][name, config, split])
    monkeypatch.setitem(sys.modules, "datasets", load)
    fabricated.write_all(tmp_path, subjects=["virology"])
    fabricated.write_lines(tmp_path / "gsm8k" / "test.jsonl", fabricated.gsm8k("test"))
    rows = [row for (_, _, split), part in HUB[kind].items() for row in part]
    if kind == "mbpp":
        fabricated.write_lines(tmp_path / "mbpp" / "mbpp.jsonl", rows)
    hub, files = KINDS[kind](None, **SUBSET[kind]), KINDS[kind](str(tmp_path), **SUBSET[kind])
    assert files.questions() == hub.questions()
    assert files.examples() == hub.examples()
    assert files.seed_prompts() == hub.seed_prompts()


def test_without_datasets_the_error_says_what_to_install(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"`datasets` is not installed: pip install .*task\.root"):
        KINDS[kind](None, **SUBSET[kind]).questions()


def test_without_a_network_the_error_is_one_line(kind, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach it.\nTry again.")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ConfigError, match=r"cannot be had from the hub \(Couldn't reach it\): .*task\.root") as error:
        KINDS[kind](None, **SUBSET[kind]).questions()
    assert "\n" not in str(error.value)


# Configuration


def test_the_configuration_makes_the_task(kind, made_up):
    node = composed(f"task={kind}")["task"]
    assert {"prompt_tokens", "response_tokens", "epochs", "batch_size"} <= node.keys()
    settings = {key: value for key, value in node.items() if key in {f.name for f in dataclasses.fields(of(kind))}}
    settings |= {"root": made_up, **{key: list(value) for key, value in SMALL[kind].items()}}
    if kind == "mbpp":
        settings |= {"allow_code_execution": True, "unsandboxed": True}
    assert KINDS[kind](made_up, **SMALL[kind]) == schema.make(of(kind), settings, "task")
    with pytest.raises(ConfigError, match="`task.num_seeds` is 0"):
        schema.make(of(kind), {**settings, "num_seeds": 0}, "task")


def of(kind):
    return {"bbh": Bbh, "gsm8k": Gsm8k, "mbpp": Mbpp, "mmlu": Mmlu}[kind]
