"""The row that papers report of a benchmark of many subsets, from runs on one each."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from tests.fabricated_runs import write_run
from tskd.report import figures, means, runs, statistics, table_writer, tables
from tskd.report.write import write

SUBSETS = ("navigate", "snarks", "object_counting")


def write_subsets(root, jobs, thresholds=(0.5, 4)):
    """Runs on one subset each; the ids of their questions are the subset's, as the graded answers' groups are."""
    for threshold, (subset, seed) in product(thresholds, jobs):
        folder = root / f"{subset},{threshold},{seed}"
        task = {"_target_": "tskd.tasks.bbh.Bbh", "subset": subset, "root": None}
        given = [f"task.subset={subset}", f"threshold={threshold}", f"seed={seed}"]
        level = 0.9 - 0.1 * threshold - 0.05 * SUBSETS.index(subset)
        size = {"questions": 20 + 10 * SUBSETS.index(subset), "prompts": 4, "iterations": 1}
        write_run(folder, given, threshold=threshold, seed=seed, level=level, others={"task": task}, **size)
        for file in (folder / "evaluation").iterdir():
            named = file.read_text().replace('"group": ""', f'"group": "{subset}"')
            file.write_text(named.replace('"question": "', f'"question": "{subset} '))


def accuracies(root, threshold, seeds=(0, 1, 2)):
    """By subset and seed."""
    found = {run.job: run.result["eval/accuracy"] for run in runs.runs_in(root)}
    return np.array([[found[threshold, seed, subset] for seed in seeds] for subset in sorted(SUBSETS)])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_subsets(root, product(SUBSETS, (0, 1, 2)))
    return root


@pytest.fixture(scope="module")
def found(sweep):
    (found,) = means.average_over_subsets(runs.collect([sweep]).studies)
    return found


def test_an_arm_has_the_mean_over_its_subsets_and_the_interval_of_its_seeds(sweep, found):
    assert ("bbh, mean over 3 subsets", ()) == (found.name, found.left_out)
    assert ["threshold=0.5", "threshold=4"] == [arm.label for arm in found.arms]
    of_seeds = accuracies(sweep, 0.5).mean(axis=0)
    estimate = found.arms[0].metrics["eval/accuracy"]
    assert (of_seeds.mean(), of_seeds.std(ddof=1), 3) == pytest.approx((estimate.mean, estimate.sd, estimate.n))
    assert stats.t.interval(0.95, 2, of_seeds.mean(), stats.sem(of_seeds)) == pytest.approx(estimate.interval)


def test_arms_are_compared_subset_by_subset_and_seed_by_seed(sweep, found):
    first, second = (accuracies(sweep, threshold) for threshold in (0.5, 4))
    (comparison,) = found.comparisons
    of_subsets = (first - second).mean(axis=1)
    assert stats.ttest_1samp(of_subsets, 0).confidence_interval() == pytest.approx(comparison.difference.interval)
    assert (int((of_subsets > 0).sum()), int((of_subsets < 0).sum())) == (
        comparison.first_ahead,
        comparison.second_ahead,
    )
    assert 2 / 2**3 == comparison.p  # all subsets agree, and there are eight ways to flip three signs
    assert stats.ttest_rel(first.mean(axis=0), second.mean(axis=0)).pvalue == pytest.approx(comparison.p_over_seeds)


def test_a_seed_that_lacks_a_subset_is_named_and_does_not_count(tmp_path):
    jobs = [job for job in product(SUBSETS, (0, 1, 2)) if job != ("snarks", 2)]
    write_subsets(tmp_path, jobs, thresholds=(0.5,))
    write_subsets(tmp_path, [("navigate", 0)], thresholds=(4,))
    (found,) = means.average_over_subsets(runs.collect([tmp_path]).studies)
    assert [("threshold=0.5", [0, 1])] == [(arm.label, [*arm.of_seeds]) for arm in found.arms]
    assert accuracies(tmp_path, 0.5, (0, 1)).mean() == pytest.approx(found.arms[0].metrics["eval/accuracy"].mean)
    lacking = {"threshold=0.5, seed 2": "snarks", "threshold=4, seed 0": "object_counting, snarks"}
    assert [
        f"bbh, {which} does not count in the mean over 3 subsets: it lacks {what}." for which, what in lacking.items()
    ] == list(found.left_out)


def test_a_job_that_was_asked_other_questions_too_counts_once_and_is_said(tmp_path):
    write_subsets(tmp_path / "a", product(SUBSETS, (0,)), thresholds=(0.5,))
    write_subsets(tmp_path / "b", [("snarks", 0)], thresholds=(0.5,))
    for file in (tmp_path / "b" / "snarks,0.5,0" / "evaluation").iterdir():
        file.write_text(file.read_text().replace('"question": "snarks ', '"question": "other '))
    (found,) = means.average_over_subsets(runs.collect([tmp_path]).studies)
    assert [1] == [len(arm.of_seeds) for arm in found.arms]
    (line,) = found.left_out
    assert "on other questions; the mean has the latter alone" in line


def test_runs_on_one_subset_or_on_several_at_once_have_no_mean(tmp_path):
    write_subsets(tmp_path, [("navigate", 0)])
    assert [] == means.average_over_subsets(runs.collect([tmp_path]).studies)
    at_once = tmp_path / "navigate,4,0" / "evaluation"
    for file in at_once.iterdir():
        file.write_text(file.read_text().replace('"group": "navigate"', '"group": "other"', 1))
    write_subsets(tmp_path, [("snarks", 0)], thresholds=(0.5,))
    (found,) = means.average_over_subsets(runs.collect([tmp_path]).studies)
    assert ["as configured"] == [arm.label for arm in found.arms]


def test_subsets_that_were_asked_with_other_settings_of_the_task_are_not_put_together(tmp_path):
    write_subsets(tmp_path, product(SUBSETS, (0,)), thresholds=(0.5,))
    config = tmp_path / "snarks,0.5,0" / "config.yaml"
    config.write_text(config.read_text().replace("root: null", "root: null\n  limit: 5"))
    (found,) = means.average_over_subsets(runs.collect([tmp_path]).studies)
    assert ("navigate", "object_counting") == found.subsets


def test_a_report_begins_with_the_means_and_says_what_their_intervals_are(sweep, found, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figures_of", lambda found: {})  # they are drawn in other tests, and take seconds
    write(runs.collect([sweep]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## bbh, mean over 3 subsets") < text.index("## bbh navigate")
    assert "what other seeds would give on these very subsets" in text
    page = (tmp_path / "report.html").read_text()
    assert '<a href="#section-0">' in page
    assert '<h2 id="section-0">' in page
    table = tables.tables_of_means(found)[0]
    cell = table_writer.cells(table.columns, table.rows)[0][4]
    assert cell in text
    assert cell in page
    assert r"\begin{tabular}" in (tmp_path / "bbh__mean_over_3_subsets" / "tables.tex").read_text()


def test_one_seed_in_common_is_no_comparison_over_seeds():
    assert (None, None) == statistics.paired_over_seeds({0: 0.5, 1: 0.6}, {1: 0.4, 2: 0.4})
    difference, p = statistics.paired_over_seeds({0: 0.5, 1: 0.6}, {1: 0.5, 0: 0.4})
    assert (pytest.approx(0.1), 2, None) == (difference.mean, difference.n, p)
