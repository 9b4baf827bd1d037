"""What counts as right, and how much of the teacher's lead came over."""

import math

import pytest

from tests import scripted, tiny
from tskd.evaluation.answer_metrics import ExactMatch
from tskd.metrics.accuracy import Accuracy, by_split, mean_accuracy, recovered_gain
from tskd.models.weights import LanguageModel
from tskd.records import Prompt, Question
from tskd.tasks import same_answer
from tskd.tasks.files import Files

TASK = Files("unused")


@pytest.fixture(scope="module")
def says(tmp_path_factory):
    """A model for each of two answers, whatever it is asked."""

    def model(letter):
        folder = scripted.save_model(tmp_path_factory.mktemp("says") / "m", {":": " ", " ": letter})
        return LanguageModel(tiny.weights(folder))

    return {letter: model(letter) for letter in "yn"}


def evaluator(trainer, *questions):
    return ExactMatch(TASK, questions, trainer, max_new_tokens=4)


def test_accuracy_is_counted_for_each_split_in_its_own_order(says, trainer):
    asked = [
        Question(Prompt(str(n)), a, s) for n, (a, s) in enumerate([("y", "private"), ("n", "other"), ("n", "private")])
    ]
    accuracies = by_split(evaluator(trainer, *asked)(says["y"]))
    assert {"private": (True, False), "other": (False,)} == {split: a.correct for split, a in accuracies.items()}


def test_without_answers_accuracy_is_agreement_with_the_teacher(says, trainer):
    filled = evaluator(trainer, Question(Prompt("a"), None), Question(Prompt("b"), None)).answered_by(says["n"])
    assert {letter: by_split(filled(says[letter]))["private"].value for letter in "yn"} == {"y": 0.0, "n": 1.0}


def test_answers_that_are_given_stay(says, trainer):
    filled = evaluator(trainer, Question(Prompt("a"), "y"), Question(Prompt("b"), None)).answered_by(says["n"])
    assert [question.answer for question in filled.questions] == ["y", "n"]


def test_a_question_without_any_answer_is_never_right(says, trainer):
    assert not evaluator(trainer, Question(Prompt("a"), None))(says["y"])[0].correct


@pytest.mark.parametrize(
    ("answer", "response", "same"),
    [
        ("Oslo", " oslo. ", True),
        ("two words", "two\n words", True),
        ("7", "77", False),
        ("a.b", "ab", False),
        ("", "x", False),
    ],
)
def test_answers_are_the_same_words_whatever_case_space_and_full_stop(answer, response, same):
    assert same is same_answer(answer, response)


def of(text):
    return Accuracy(tuple(mark == "+" for mark in text))


@pytest.mark.parametrize(
    ("before", "teacher", "after", "expected"),
    [
        ("----------", "++++++++++", "+++++-----", 0.5),
        ("----------", "++++++++++", "----------", 0.0),
        ("+---------", "++++++++++", "----------", -1 / 9),  # worse than before
        ("----------", "++++++++--", "++++++++++", 1.25),  # better than the teacher
        ("----------", "+++-------", "++++++++++", None),  # a lead of 0.3, standard error 0.153
        ("++++++++++", "++++++++++", "++++++++++", None),  # no lead
        ("++++++++++", "----------", "----------", None),  # the teacher is the weaker one
        ("-", "+", "+", None),  # one question has no standard error
        ("", "", "", None),
    ],
)
def test_recovered_gain_is_shown_only_where_the_teacher_leads_by_two_standard_errors(before, teacher, after, expected):
    gain = recovered_gain(of(before), of(teacher), of(after))
    assert gain is None if expected is None else expected == pytest.approx(gain)


def test_the_standard_error_is_that_of_the_paired_differences():
    # Each right answer of the teacher's is one that the target lacks: unpaired, this lead of 0.5 would not be enough.
    assert recovered_gain(of("++++----"), of("++++++++"), of("++++++--")) == pytest.approx(0.5)


def test_accuracy_of_no_questions_is_no_number():
    assert math.isnan(Accuracy(()).value)


def test_a_split_that_was_not_asked_has_no_mean():
    assert tuple(mean_accuracy({"private": of("+-")}, split) for split in ("private", "general")) == (0.5, None)


def test_a_graded_answer_names_its_question_by_id_alone(says, trainer):
    (graded,) = evaluator(trainer, Question(Prompt("secret"), "y"))(says["y"])
    assert (Prompt("secret").id, "y", True) == (graded.question, graded.response, graded.correct)
    assert "secret" not in str(graded)


def test_accuracy_over_subsets_is_the_mean_of_their_means():
    # Three right of four in one subset, none of one in the other.
    accuracy = Accuracy((True, True, True, False, False), ("a", "a", "a", "a", "b"))
    assert accuracy.value == pytest.approx((0.75 + 0) / 2)
    assert math.isnan(accuracy.standard_error)  # a single question says nothing of its spread


def test_the_standard_error_is_that_of_a_mean_in_each_subset():
    one = Accuracy((True, False, True, False))
    assert one.standard_error == pytest.approx(math.sqrt(0.25 * 4 / 3 / 4))
    two = Accuracy((*one.correct, *one.correct), ("a",) * 4 + ("b",) * 4)
    assert two.standard_error == pytest.approx(one.standard_error / math.sqrt(2))
