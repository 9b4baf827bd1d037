"""lm-evaluation-harness asks the questions of the benchmarks, and grades them, as the tasks themselves do."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import fabricated, tiny
from tests.benchmarks import KINDS, ROOT, SMALL, YAMLS, code_allowed
from tskd.errors import ConfigError, SandboxError
from tskd.tasks import bbh, gsm8k
from tskd.tasks.bbh import Bbh
from tskd.tasks.mbpp import Mbpp
from tskd.tasks.mmlu import Mmlu
from tskd.tasks.sandbox import isolated_tests

RESPONSES = {
    "bbh": ["{answer}", "\n{answer}.\nFor it is so.", "no such thing", "", "x\n{answer}", "{lower}"],
    "gsm8k": ["#### {answer}", "It is ${answer}.", "It is 123456789.", "", "{answer}\n\nQuestion: 3?", "{answer} or 7"],
    "mbpp": [
        "{answer}",
        "Sure:\n```python\n{answer}\n```\nDone.",
        "def add(x):\n    return None",
        "",
        "(",
        "```\n{answer}",
    ],
}


def as_text(answer):
    return {"answer": answer.rpartition("#### ")[2], "lower": answer.lower()}


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval")


def scripted(task, says, wrap=None):
    """A model that answers each prompt with ``says[prompt]``; of choices, that one is the likeliest."""
    from lm_eval.api.model import LM

    class Scripted(LM):
        asked: list = []  # noqa: RUF012
        tokenizer_name = "scripted"

        def apply_chat_template(self, messages, add_generation_prompt=True):
            return "".join(f"<{turn['role']}>{turn['content']}" for turn in messages)

        def chat_template(self, _=None):
            return "scripted"

        def generate_until(self, requests):
            return [self.said(*request.args) for request in requests]

        def said(self, context, settings):
            self.asked.append(context)
            assert settings["do_sample"] is False
            text = says[context]
            for stop in settings["until"]:
                text = text.split(stop)[0]
            return text

        def loglikelihood(self, requests):
            self.asked += [request.args for request in requests]
            return [
                (0.0 if end.strip() == says.get(start) else -1.0, False) for start, end in (r.args for r in requests)
            ]

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

    return Scripted()


def evaluated(lm_eval, model, harness, **settings):
    from lm_eval.tasks import TaskManager

    metadata = json.loads(json.dumps(harness.metadata))
    manager = TaskManager(include_path=str(YAMLS), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=[harness.name],
        task_manager=manager,
        num_fewshot=harness.num_fewshot,
        bootstrap_iters=0,
        confirm_run_unsafe_code=harness.runs_code,
        **settings,
    )
    rows = [row for row in results["samples"][harness.name] if row["filter"] == harness.filter]
    rows.sort(key=lambda row: row["doc_id"])
    mean = results["results"][harness.name][f"{harness.metric},{harness.filter}"]
    return rows, [bool(row[harness.metric]) for row in rows], mean


@pytest.mark.filterwarnings("default")  # of the harness's own
@pytest.mark.parametrize("kind", list(RESPONSES))
def test_the_harness_grades_as_the_task_does(kind, root, lm_eval):
    task = KINDS[kind](root, limit=6, **SMALL[kind])
    questions = task.questions()
    forms = [RESPONSES[kind][index % 6] for index in range(len(questions))]
    says = {q.prompt.text: form.format(**as_text(q.answer)) for q, form in zip(questions, forms, strict=True)}
    rows, correct, mean = evaluated(lm_eval, scripted(task, says), task.harness())
    assert [(q.prompt.text, q.answer, q.group) for q in questions] == [
        tuple(row["doc"][name] for name in ("prompt", "answer", "group")) for row in rows
    ]
    assert correct == [task.is_correct(question, says[question.prompt.text]) for question in questions]
    assert [True, True, False, False] == correct[:4]
    assert mean == pytest.approx(sum(correct) / len(correct))


@pytest.mark.filterwarnings("default")
def test_the_harness_takes_the_likeliest_letter(root, lm_eval):
    task = Mmlu(root, limit=4, **SMALL["mmlu"])
    questions = task.questions()
    letters = ["ABCD"[index % 4] for index in range(len(questions))]
    says = dict(zip((question.prompt.text for question in questions), letters, strict=True))
    _, correct, _ = evaluated(lm_eval, scripted(task, says), task.harness())
    assert correct == [task.is_correct(*pair) for pair in zip(questions, letters, strict=True)]
    assert len(set(correct)) == 2


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("metadata", "settings", "letters"),
    [
        ({}, {}, [" A", " B", " C", " D"]),
        ({}, {"apply_chat_template": True}, ["A", "B", "C", "D"]),
        ({"target_delimiter": " "}, {"apply_chat_template": True}, [" A", " B", " C", " D"]),
    ],
    ids=["plain", "chat", "chat with a space"],
)
def test_what_stands_before_the_letter_can_be_set(metadata, settings, letters, made_up, lm_eval):
    harness = Mmlu(made_up, subset=fabricated.TWINS[1], limit=1).harness()
    model = scripted(None, {})
    evaluated(lm_eval, model, dataclasses.replace(harness, metadata=harness.metadata | metadata), **settings)
    assert letters == [end for _, end in model.asked]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("kind", "subset"), [("bbh", {"subset": "navigate"}), ("mmlu", {"subset": "college_medicine"})]
)
def test_few_shot_examples_are_the_first_private_ones(kind, subset, made_up, lm_eval):
    task = KINDS[kind](made_up, num_fewshot=2, limit=1, **subset)
    (question,) = task.questions()
    shown = [(q.prompt.text, q.answer) for q in task.examples()[:2]]
    expected = "".join(f"<user>{asked}<assistant>{answer}" for asked, answer in shown) + f"<user>{question.prompt.text}"
    model = scripted(task, {expected: "A"})
    evaluated(lm_eval, model, task.harness(), apply_chat_template=True, fewshot_as_multiturn=True)
    assert expected in (model.asked[0], model.asked[0][0])


@pytest.mark.parametrize("metadata", [{"subset": "snarks", "limit": "2"}, {"subset": ["snarks"], "limit": 2}])
def test_metadata_may_come_from_the_command_line(metadata, made_up):
    from tskd.tasks.lm_eval_tasks import documents

    made = documents.bbh(root=made_up, version=1.0, pretrained="x", **metadata)
    expected = Bbh(made_up, subset="snarks", limit=2)
    assert [question.prompt.text for question in expected.questions()] == made["test"]["prompt"]
    assert [question.answer for question in expected.examples()] == made["train"]["answer"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"subest": "snarks"}, "`subest` in --metadata is unknown; `subset` is near it"),
        ({"limit": 0, "num_seeds": "x"}, "`limit` is 0: .*greater than 0"),
        ({"subset": "snark"}, "nearest are snarks"),
    ],
)
def test_wrong_metadata_is_refused(metadata, said, made_up):
    from tskd.tasks.lm_eval_tasks import documents

    with pytest.raises(ConfigError, match=said) as error:
        documents.bbh(root=made_up, **metadata)
    assert "\n" not in str(error.value)


def test_harness_settings_make_the_same_task_again(task):
    settings = json.loads(json.dumps(task.harness().metadata))
    again = type(task)(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})
    assert task == again


def test_both_graders_use_the_same_patterns():
    def read(name):
        class Loader(yaml.SafeLoader):
            pass

        Loader.add_constructor("!function", lambda loader, node: node.value)
        return yaml.load((YAMLS / f"tskd_{name}.yaml").read_text(), Loader)

    assert bbh.FIRST_LINE == read("bbh")["filter_list"][0]["filter"][0]["regex_pattern"]
    numbers = read("gsm8k")
    assert gsm8k.NUMBER == numbers["filter_list"][1]["filter"][0]["regex_pattern"]
    assert list(gsm8k.IGNORED) == numbers["metric_list"][0]["regexes_to_ignore"]
    assert gsm8k.NEXT_QUESTION in numbers["generation_kwargs"]["until"]


def test_gsm8k_is_graded_by_the_harnesss_own_patterns():
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        pytest.skip("lm_eval, whose patterns these are, is not installed")
    upstream = yaml.safe_load((Path(found.origin).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    assert gsm8k.NUMBER == upstream["filter_list"][1]["filter"][0]["regex_pattern"]
    assert list(gsm8k.IGNORED) == upstream["metric_list"][0]["regexes_to_ignore"]


def test_the_harnesss_own_command_line_asks_the_same_questions(made_up, tmp_path, lm_eval):
    model = tiny.save_model(tmp_path / "tiny-llama")
    # As `lm_eval`, but for its index of 14,000 tasks of its own, which takes longer than all the rest.
    cli = (
        "from lm_eval.tasks import TaskManager; TaskManager.__init__.__defaults__ = (None, None, False, None); "
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    command = [sys.executable, "-c", cli, "--model", "hf", "--device", "cpu", "--include_path", str(YAMLS)]
    settings = {"root": made_up, "subset": "navigate", "limit": 2}
    command += ["--model_args", f"pretrained={model}", "--tasks", "tskd_bbh", "--metadata", json.dumps(settings)]
    ran = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out"), "--log_samples"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    (samples,) = tmp_path.glob("out/*/samples_tskd_bbh_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [q.prompt.text for q in Bbh(**settings).questions()] == [row["doc"]["prompt"] for row in rows]
    assert all(row["exact_match"] in (0.0, 1.0) for row in rows)


@pytest.mark.filterwarnings("default")
def test_the_harness_runs_no_code_that_it_was_not_allowed_to(made_up, lm_eval):
    harness = dataclasses.replace(code_allowed(made_up, limit=1).harness(), runs_code=False)
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluated(lm_eval, scripted(None, {}), harness)


def test_the_sandbox_passes_the_published_code_and_fails_other(root):
    try:
        isolated_tests.check_available()
    except SandboxError as error:
        pytest.skip(str(error))
    task = Mbpp(root, allow_code_execution=True)
    question = task.questions()[0]
    assert task.is_correct(question, f"```python\n{question.answer}\n```")
    assert not task.is_correct(question, "import os\nos._exit(0)")
