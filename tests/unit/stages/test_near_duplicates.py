"""ROUGE-L is the field's, and whatever is left out without computing it would not have reached the threshold."""

import json
import random
import subprocess
import sys

import pytest

from tskd.stages.near_duplicates import Similar, rouge_l, words

# In a process of its own: rouge_score brings absl, whose log handler closes pytest's standard error behind its back.
THEIRS = """
import json, sys
from rouge_score.rouge_scorer import RougeScorer
scorer = RougeScorer(["rougeL"], use_stemmer=False)
print(json.dumps([scorer.score(one, other)["rougeL"].fmeasure for one, other in json.load(sys.stdin)]))
"""


def random_texts(number, *, vocabulary=9, longest=80, seed=0):
    """Texts of few words, so that they have much in common, with signs, cases and white space of all kinds."""
    rng = random.Random(seed)
    kinds = [f"{rng.choice('abAB')}{i % 5}{rng.choice(['', '!', '_x', chr(10) * 2, ' -'])}" for i in range(vocabulary)]
    return [" ".join(rng.choices(kinds, k=rng.randint(0, longest))) for _ in range(number)]


def test_it_is_that_of_rouge_score():
    texts = random_texts(400)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    done = subprocess.run([sys.executable, "-c", THEIRS], input=json.dumps(pairs), capture_output=True, text=True)
    assert json.loads(done.stdout) == pytest.approx([rouge_l(one, other) for one, other in pairs], abs=1e-12)


def test_it_is_between_nothing_and_all_in_common():
    assert 1.0 == rouge_l("What is it?", " what IS it")
    assert 0.0 == rouge_l("a", "b") == rouge_l("?", "?") == rouge_l("", "a")


@pytest.mark.parametrize("least", [0.3, 0.6, 0.7, 1.0])
def test_a_text_is_similar_to_those_before_it_where_one_of_them_reaches_the_threshold(least):
    texts = random_texts(60, longest=20)
    similar, before = Similar(least), []
    found = set()
    for text in texts:
        expected = any(rouge_l(text, other) >= least for other in before)
        assert expected == similar.has(text)
        similar.add(text)
        before.append(text)
        found.add(expected)
    assert found == {True, False} or least == 1.0


def test_the_threshold_itself_counts():
    similar = Similar(0.7)
    similar.add("a b c d e f g h i j")
    assert similar.has("a b c d e f g x y z")
    assert not similar.has("a b c d e f w x y z")


def test_words_of_other_scripts_count():
    assert ("größe", "你好", "7") == words("Größe: 你好, 7")
    similar = Similar(0.7)
    similar.add("计算 5")
    assert not similar.has("翻译 5")
