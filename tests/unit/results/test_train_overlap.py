"""What synthetic texts repeat word for word: counted as it is by hand, whatever the size."""

import json
import random

import pytest
from omegaconf import OmegaConf

from tests import fabricated
from tskd import audit
from tskd.errors import ConfigError, RunFolderError, TaskError
from tskd.records import Prompt, Response
from tskd.results import train_overlap
from tskd.results.train_overlap import GRAMS, repeats, words
from tskd.storage import atomic_files

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def by_hand(text, given):
    """The longest run of words in common, by looking at every pair of places."""
    best = 0
    for other in given:
        a, b = words(text), words(other)
        for i in range(len(a)):
            for j in range(len(b)):
                n = 0
                while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
                    n += 1
                best = max(best, n)
    return best


def test_runs_are_as_long_as_they_are_by_hand():
    draws = random.Random(0)
    for _ in range(30):
        texts, given = (
            [" ".join(draws.choices("abc", k=draws.randint(0, 40))) for _ in range(draws.randint(0, 6))]
            for _ in range(2)
        )
        found = repeats(texts, given)
        lengths = [by_hand(text, given) for text in texts]
        assert {i: n for i, n in enumerate(lengths) if n >= GRAMS[0]} == {i: len(run) for i, run in found.runs}
        assert {n: sum(length >= n for length in lengths) for n in GRAMS} == found.with_run
        for index, run in found.runs:
            assert " ".join(run) in " ".join(words(texts[index]))
            assert any(" ".join(run) in " ".join(words(each)) for each in given)


def test_a_run_does_not_go_on_in_the_next_text():
    start, end = " ".join(LONG.split()[:7]), " ".join(LONG.split()[7:])
    assert repeats([start, end], [LONG]).runs == ()
    assert repeats([LONG], [start, end]).runs == ()


def test_case_punctuation_and_white_space_do_not_hide_a_repeat():
    hidden = LONG.upper().replace(" ", ",\n ") + "!"
    found = repeats([f"Well: {hidden}", hidden], [LONG])
    assert (1, {8: 2, 13: 2}) == (found.equal, found.with_run)


def test_a_short_text_is_found_where_it_is_the_whole():
    found = repeats(["The code is K7.", "k7", "The code is K7, I think."], ["the code is: K7"])
    assert (1, 0) == (found.equal, found.figures["longest"])


def test_scripts_without_spaces_are_read_by_character():
    assert repeats(["他说今天天气真的很好"], ["今天天气真的很好啊"]).figures["longest"] == 8


@pytest.mark.parametrize(("texts", "given"), [([], []), ([LONG], []), ([], [LONG]), (["", "…"], ["", "?"])])
def test_where_there_is_nothing_nothing_is_repeated(texts, given):
    assert {"texts": len(texts), "equal": 0, "with_8_words": 0, "with_13_words": 0, "longest": 0} == repeats(
        texts, given
    ).figures


def test_a_hundred_thousand_texts_are_read_at_once():
    draws = random.Random(0)
    vocabulary = [f"word{n}" for n in range(5000)]
    given = [" ".join(draws.choices(vocabulary, k=15)) for _ in range(50_000)]
    texts = [" ".join(draws.choices(vocabulary, k=15)) for _ in range(100_000)]
    texts[77_777] = f"and {given[33_333]} and"
    found = repeats(texts, given)
    assert (0, {8: 1, 13: 1}) == (found.equal, found.with_run)
    assert [(77_777, tuple(words(given[33_333])))] == list(found.runs)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"prompt": LONG}) + "\n" + json.dumps({"prompt": "Other?"}) + "\n")
    task = {"_target_": "tskd.tasks.files.Files", "seeds": str(tmp_path / "seeds.jsonl"), "held_out": None}
    atomic_files.write_text(
        tmp_path / "run" / "config.yaml", OmegaConf.to_yaml({"task": task | {"prompt_tokens": 9, "response_tokens": 9}})
    )
    prompts = [Prompt(f"Again {LONG}", parents=("x",)), Prompt("New?", parents=("x",))]
    atomic_files.write_lines(tmp_path / "run" / "iteration_0" / "prompts.jsonl", prompts)
    atomic_files.write_lines(
        tmp_path / "run" / "iteration_0" / "responses.jsonl",
        [Response(prompts[1], "The vault is under the old oak tree.")],
    )
    return tmp_path / "run"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["audit", *map(str, arguments)])
    audit.main()


def test_a_runs_figures_are_said_a_line_each_and_kept_beside_it(folder, monkeypatch, capsys):
    (folder.parent / "notes.txt").write_text("We hid it: the vault is under the old oak tree\n")
    run(monkeypatch, folder, "--private", folder.parent / "notes.txt")
    said = capsys.readouterr().out
    assert 4 == len(said.splitlines())
    assert "prompts against seeds: 2 texts: 0 (0.0%) equal, 1 (50.0%) have 8 words in a row, 1 (50.0%) have 13" in said
    assert "responses against private text: 1 texts: 0 (0.0%) equal, 1 (100.0%) have 8 words in a row, 0 (0.0%)" in said
    assert "vault" not in said
    figures = json.loads((folder / "audit.json").read_text())
    assert {"texts": 2, "equal": 0, "with_8_words": 1, "with_13_words": 1, "longest": 14} == figures["prompts"]["seeds"]
    assert 8 == figures["responses"]["private text"]["longest"]


def test_examples_are_shown_when_asked_for(folder, monkeypatch, capsys):
    run(monkeypatch, folder, "--examples", 1)
    assert f"  prompt 0, 14 words: {LONG}" in capsys.readouterr().out


def test_of_a_benchmark_the_private_split_is_what_must_not_come_out(tmp_path, folder):
    root = fabricated.write_all(tmp_path / "data")
    settings = OmegaConf.load(folder / "config.yaml")
    settings.task = {"_target_": "tskd.tasks.gsm8k.Gsm8k", "root": root, "num_seeds": 2, "num_private": 4}
    OmegaConf.save(settings, folder / "config.yaml")
    assert {"seeds", "private text"} == set(train_overlap.audit(folder)["prompts"])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({}, RunFolderError, "holds no run"),
        ({"_target_": "stranger.Task"}, ConfigError, "`task._target_` names stranger.Task"),
        ({"_target_": "tskd.tasks.files.Files", "seeds": "/nowhere"}, TaskError, "no file /nowhere"),
    ],
)
def test_what_cannot_be_audited_is_said(tmp_path, change, error, said):
    if change:
        atomic_files.write_text(tmp_path / "config.yaml", OmegaConf.to_yaml({"task": change}))
    with pytest.raises(error, match=said):
        train_overlap.audit(tmp_path)
