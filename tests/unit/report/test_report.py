"""What a report says of finished runs: the right numbers, no more than they carry, and which runs do not count."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from tests.fabricated_runs import write_run, write_sweep
from tskd.errors import RunFolderError, TskdError
from tskd.report import check_installed, figures, findings, runs, statistics, table_writer, tables
from tskd.report.table_writer import Column, Table
from tskd.report.write import write

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two thresholds and two targets, two seeds each."""
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, thresholds=(0.5, 4), seeds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def found(sweep):
    (study,) = runs.collect([sweep]).studies
    return findings.analyse_study(study)


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write(runs.collect([sweep]), out)
    return out


def seeds_of(arm):
    return tuple(run.seed for run in arm.runs)


def rows(file):
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# Which runs count, and as what


def test_runs_are_put_together_by_what_was_overridden_and_their_seeds_are_told_apart(found):
    labels = [f"target={t}, threshold={x}" for t in ("atlas_neox", "smollm2_135m") for x in ("0.5", "4")]
    assert labels == [arm.arm.label for arm in found.arms]
    assert {(0, 1)} == {seeds_of(arm.arm) for arm in found.arms}


def test_an_arm_that_was_left_at_the_default_is_labelled_with_it(tmp_path):
    write_run(tmp_path / "a", ["threshold=0.5"], threshold=0.5)
    write_run(tmp_path / "b", [], threshold=1.5)
    (study,) = runs.collect([tmp_path]).studies
    assert ["threshold=0.5", "threshold=1.5"] == [arm.label for arm in study.arms]


def test_what_texts_repeat_of_given_ones_is_shown_where_it_was_audited(tmp_path):
    for seed, repeated in enumerate((10, 30)):
        run = write_run(tmp_path / f"{seed}", seed=seed)
        against = {"seeds": {"texts": 100, "with_8_words": 1}, "private text": {"texts": 100, "with_8_words": repeated}}
        (run / "audit.json").write_text(json.dumps({"prompts": against}))
    (study,) = runs.collect([tmp_path]).studies
    (selection,) = [
        table for table in tables.tables_of_findings(findings.analyse_study(study)) if table.name == "selection"
    ]
    shown = dict(
        zip(
            [column.name for column in selection.columns],
            table_writer.cells(selection.columns, selection.rows)[0],
            strict=True,
        )
    )
    assert shown["prompts that repeat, %"].startswith("20.0 ± 14.1")
    assert "responses that repeat, %" not in shown


def test_a_seed_that_follows_the_runs_is_its_seed_and_one_of_its_own_is_a_setting(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", [f"seed={seed}"], seed=seed, others={"answer": {"seed": seed}})
    (study,) = runs.collect([tmp_path]).studies
    assert [(0, 1)] == [seeds_of(arm) for arm in study.arms]
    write_run(tmp_path / "own", ["seed=1", "answer.seed=7"], seed=1, others={"answer": {"seed": 7}})
    (study,) = runs.collect([tmp_path]).studies
    assert 3 == len(study.arms)


def test_a_group_that_is_nothing_in_some_runs_makes_none_of_them_of_another_version(tmp_path):
    write_run(tmp_path / "a", ["experiment=a"], others={"answer": None})
    write_run(tmp_path / "b", ["experiment=b"], others={"answer": {"by": "x"}})
    collection = runs.collect([tmp_path])
    assert not any("another version" in said for said in collection.left_out)
    assert ["experiment=a", "experiment=b"] == [arm.label for arm in collection.studies[0].arms]


def test_runs_that_were_asked_other_questions_are_said_and_not_averaged(tmp_path):
    write_run(tmp_path / "a", questions=50)
    write_run(tmp_path / "b", questions=60, seed=1)
    collection = runs.collect([tmp_path])
    assert [(1, 50), (1, 60)] == sorted((len(s.arms[0].runs), s.num_questions) for s in collection.studies)
    assert any("different sets of held-out questions" in said for said in collection.left_out)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "status.json").unlink(), r"bad is unfinished\."),
        (lambda run: (run / "status.json").write_text('{"status": "failed", "error": "No."}'), r"bad is failed: No\."),
        (lambda run: (run / "result.json").write_text("{"), r"result\.json"),
        (lambda run: (run / "result.json").unlink(), r"result\.json"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), r"config\.yaml cannot be read"),
        (lambda run: (run / "metrics.jsonl").unlink(), r"metrics\.jsonl"),
        (lambda run: (run / "iteration_1" / "kept.jsonl").unlink(), r"iteration_1/kept\.jsonl"),
        (lambda run: (run / "iteration_0" / "dropped.jsonl").write_text("{}\n"), r"dropped\.jsonl, line 1"),
        (lambda run: (run / "evaluation" / "teacher.jsonl").unlink(), "The answers of teacher are not in"),
        (lambda run: (run / "evaluation" / "target.jsonl").write_text(""), "do not answer the same questions"),
    ],
)
def test_a_run_that_is_damaged_or_unfinished_is_named_with_its_file_and_left_out(tmp_path, break_it, said):
    write_run(tmp_path / "good")
    break_it(write_run(tmp_path / "bad", seed=1))
    collection = runs.collect([tmp_path])
    assert [(0,)] == [seeds_of(arm) for study in collection.studies for arm in study.arms]
    (line,) = collection.left_out
    assert "\n" not in line
    assert re.search(said, line)


def test_a_folder_without_a_complete_run_is_one_line(tmp_path):
    with pytest.raises(RunFolderError, match="There is no run in"):
        runs.collect([tmp_path])
    (write_run(tmp_path / "run") / "status.json").unlink()
    with pytest.raises(RunFolderError, match="None of the 1 runs there is complete. .*run is unfinished"):
        runs.collect([tmp_path])


def test_a_run_of_an_earlier_version_counts_with_the_others_and_is_said(tmp_path):
    old = write_run(tmp_path / "old")
    write_run(tmp_path / "new", seed=1)
    config = old / "config.yaml"
    config.write_text("".join(x for x in config.read_text().splitlines(True) if "merge_adapter" not in x))
    (old / "provenance.json").unlink()
    collection = runs.collect([tmp_path])
    assert [(0, 1)] == [seeds_of(arm) for arm in collection.studies[0].arms]
    assert "is of another version, without `engine.merge_adapter`" in collection.left_out[0]


def test_a_setting_that_was_added_on_purpose_makes_another_arm(tmp_path):
    write_run(tmp_path / "a")
    write_run(
        tmp_path / "b", ["+engine.pages=3"], others={"engine": {"_target_": "x", "merge_adapter": False, "pages": 3}}
    )
    assert 2 == len(runs.collect([tmp_path]).studies[0].arms)


def test_of_the_same_job_run_twice_the_later_counts_and_the_earlier_is_said(tmp_path):
    for name, when in (("later", 2_000_000_000), ("earlier", 1_000_000_000)):
        os.utime(write_run(tmp_path / name) / "result.json", (when, when))
    collection = runs.collect([tmp_path])
    assert ["later"] == [run.folder.name for run in collection.studies[0].arms[0].runs]
    assert "earlier was run again" in collection.left_out[0]


# Numbers


def test_means_and_intervals_over_seeds_are_scipys(found):
    arm = found.arms[0]
    values = [run.result["eval/accuracy"] for run in arm.arm.runs]
    estimate = arm.metrics["eval/accuracy"]
    assert (np.mean(values), np.std(values, ddof=1)) == pytest.approx((estimate.mean, estimate.sd))
    assert stats.t.interval(0.95, 1, np.mean(values), stats.sem(values)) == pytest.approx(estimate.interval)


def test_one_seed_has_no_interval_and_equal_ones_none_either():
    assert statistics.Estimate(0.5, 1) == statistics.estimate([0.5])
    assert statistics.Estimate(0.1, 3, 0.0) == statistics.estimate([0.1, 0.1, 0.1])


def test_a_metric_that_a_run_lacks_is_the_mean_of_those_that_have_it(tmp_path):
    write_run(tmp_path / "a")
    lacking = write_run(tmp_path / "b", seed=1) / "result.json"
    lacking.write_text(json.dumps({k: v for k, v in json.loads(lacking.read_text()).items() if "general" not in k}))
    (arm,) = findings.analyse_study(runs.collect([tmp_path]).studies[0]).arms
    assert (1, 2) == (arm.metrics["eval/general_accuracy"].n, arm.metrics["eval/accuracy"].n)


def test_scores_over_questions_have_the_reported_accuracy_as_their_mean(found):
    for arm in found.arms:
        assert arm.metrics["eval/accuracy"].mean == pytest.approx(arm.scores["target after"].mean())
        assert arm.metrics["eval/teacher_accuracy"].mean == pytest.approx(arm.scores["teacher"].mean())


def test_the_interval_of_a_difference_is_scipys_paired_bootstrap(found):
    first, second = (arm.scores["target after"] for arm in found.arms[:2])
    comparison = found.comparisons[0]
    ours = stats.bootstrap(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert tuple(ours) == pytest.approx(comparison.difference.interval, abs=0.01)
    assert (first - second).mean() == pytest.approx(comparison.difference.mean)


def test_mcnemars_test_is_statsmodels_and_the_sign_flips_agree_with_it():
    table = [[30, 9], [2, 15]]
    assert mcnemar(table, exact=True).pvalue == pytest.approx(statistics.mcnemar(9, 2))
    first = np.repeat([1.0, 1, 0, 0], [30, 9, 2, 15])
    second = np.repeat([1.0, 0, 1, 0], [30, 9, 2, 15])
    assert statistics.mcnemar(9, 2) == statistics.paired_test(first, second)
    assert statistics.mcnemar(9, 2) == pytest.approx(statistics.paired_test(first / 2, second / 2), abs=0.02)
    assert 1 == statistics.paired_test(first, first)


@pytest.mark.parametrize("seeds", [1, 3])
def test_arms_that_are_the_same_are_called_different_about_one_time_in_twenty(monkeypatch, seeds):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    dice = np.random.default_rng(0)
    called = 0
    for _ in range(400):
        chance = dice.uniform(0.2, 1, 100)  # some questions are harder than others, for both arms
        first, second = (dice.binomial(seeds, chance) / seeds for _ in range(2))
        called += statistics.paired_test(first, second) <= 0.05
    low, high = stats.binomtest(called, 400).proportion_ci(0.99)
    assert low <= 0.05  # an exact test of one seed each may call fewer: there are only so many values it can have
    assert high >= (0.05 if seeds > 1 else 0.02)


def test_holm_is_the_step_down_rule():
    assert [0.03, 0.06, 0.06] == pytest.approx(statistics.holm([0.01, 0.04, 0.03]))
    assert [] == statistics.holm([])


def test_newcombes_interval_holds_what_it_should_and_has_width_where_nothing_differs():
    low, high = statistics.newcombe(0, 0, 112, 0)
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.04
    dice = np.random.default_rng(0)
    held = 0
    for only_first, only_second, both, neither in dice.multinomial(150, [0.07, 0.04, 0.8, 0.09], 400):
        low, high = statistics.newcombe(only_first, only_second, both, neither)
        held += low <= 0.03 <= high
    assert stats.binomtest(held, 400, 0.95).pvalue > 0.01


def test_recovered_gain_is_the_runs_own_where_it_can_be_had_and_has_an_interval_around_it():
    before, teacher = np.repeat([0.0, 1], [80, 20]), np.repeat([1.0, 0, 1], [70, 10, 20])
    after = np.repeat([1.0, 0, 1], [35, 45, 20])
    estimate = statistics.recovered_gain(before, teacher, after)
    assert 0.5 == pytest.approx(estimate.mean)
    assert estimate.interval[0] < 0.5 < estimate.interval[1]
    assert statistics.recovered_gain(before, before, after) is None


def test_failures_are_what_the_teacher_gets_right_and_the_target_does_not(found):
    arm = found.arms[0]
    wrong = 0
    for run in arm.arm.runs:
        pairs = zip(run.graded["teacher"], run.graded["target after"], strict=True)
        wrong += sum(t.correct and not a.correct for t, a in pairs if t.split == "private")
    assert wrong == sum(failure.wrong for failure in found.failures if failure.arm == arm.arm.label)


def test_an_example_says_how_many_of_the_runs_that_scored_it_kept_it(found):
    scored = sum(len(run.kept) + len(run.dropped) for arm in found.arms for run in arm.arm.runs)
    kept = sum(len(run.kept) for arm in found.arms for run in arm.arm.runs)
    assert (scored, kept) == tuple(sum(getattr(e, n) for e in found.examples) for n in ("scored", "kept"))
    assert [e.gap for e in found.examples] == sorted((e.gap for e in found.examples), reverse=True)


# Files


def test_csv_has_the_numbers_and_their_intervals(found, report):
    results = rows(report / "results.csv")
    estimate = found.arms[0].metrics["eval/accuracy"]
    written = [float(results[0][f"target after{part}"]) for part in ("", " sd", " low", " high", " n")]
    assert [100 * estimate.mean, 100 * estimate.sd, *(100 * end for end in estimate.interval), 2] == pytest.approx(
        written
    )
    assert len(found.comparisons) == len(rows(report / "comparisons.csv")) == 6


def test_markdown_and_latex_show_the_same_cells_as_the_csv(found):
    table = tables.tables_of_findings(found)[0]
    cell = f"{100 * found.arms[0].metrics['eval/accuracy'].mean:.1f}"
    assert f"| {cell} ±" in table_writer.to_markdown(table.columns, table.rows)
    latex = table_writer.to_latex(table)
    assert rf"{cell} $\pm$" in latex
    assert r"atlas\_neox," in latex
    assert {len(table.columns) - 1} == {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_fits_whatever_a_label_holds(found, tmp_path):
    label = "x=[*] \\ & 50 % $ # _ { } ~ ^ < > | ±−–→ Größe "
    hostile = Table("t", f"`{label}`", (Column("a" * 60), Column(label)), ((f"[{label}]", -1), (label * 5, None)))
    made = [*tables.tables_of_findings(found), hostile]
    text = "\n".join(map(table_writer.to_latex, made))
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "t.tex").write_text(rf"{head}{text}\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert 0 == done.returncode, done.stdout
    assert "Overfull" not in done.stdout
    assert "Missing character" not in (tmp_path / "t.log").read_text(errors="replace")


def test_the_numbers_are_in_files_without_a_word_of_prompts_and_responses(report):
    private = "ham?"  # in every prompt
    assert private in (report / "examples.csv").read_text()
    public = [f for f in report.rglob("*") if f.suffix in (".md", ".csv", ".tex", ".svg") and "examples" not in f.name]
    assert len(public) >= 10
    assert [report / "failures.csv"] == [f for f in public if private in f.read_text() or f.name == "failures.csv"]


def test_every_figure_is_one_column_wide_and_has_n_and_units(report):
    names = {"arms", "cost", "threshold", "perplexities", "gaps"}
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} == {
        f.name for f in (report / "figures").iterdir()
    }
    for name in names:
        assert int.from_bytes((report / "figures" / f"{name}.png").read_bytes()[16:20]) == 3.3 * 300  # pixels
        drawn = (report / "figures" / f"{name}.svg").read_text()
        assert "2 seeds" in drawn or "2 runs" in drawn
        assert "112 questions" in drawn or "perplexity" in drawn


def test_figures_are_drawn_in_greys(found):
    with figures.style():
        drawn = [draw() for draw in figures.figures_of(found).values()]
    lines = [line for figure in drawn for axes in figure.axes for line in axes.lines]
    assert len(lines) > 20
    assert all(len(set(to_rgb(line.get_color()))) == 1 for line in lines)


def test_a_single_run_without_held_out_questions_has_a_report_too(tmp_path):
    run = write_run(tmp_path / "run")
    shutil.rmtree(run / "evaluation")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({k: v for k, v in result.items() if not k.startswith("eval/")}))
    write(runs.collect([tmp_path]), tmp_path / "report")
    assert {"gaps.png", "perplexities.png"} == {f.name for f in (tmp_path / "report" / "figures").glob("*.png")}
    assert [""] == [row["target after"] for row in rows(tmp_path / "report" / "results.csv")]


def test_the_command_says_where_the_private_texts_are_and_an_empty_folder_is_one_line(sweep, tmp_path):
    command = [sys.executable, "-m", "tskd.report"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "There is no run in" in done.stderr


def test_of_very_many_arms_each_is_compared_with_the_first_and_that_is_said(tmp_path):
    for number in range(11):
        write_run(tmp_path / f"{number}", [f"threshold={number}"], threshold=number, questions=20, prompts=5)
    found = findings.analyse_study(runs.collect([tmp_path]).studies[0])
    assert {"threshold=0"} == {comparison.first for comparison in found.comparisons}
    assert 10 == len(found.comparisons)
    assert "the 10 pairs with threshold=0." in tables.tables_of_findings(found)[-1].caption


def test_what_a_report_needs_and_is_not_installed_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr("tskd.report.find_spec", lambda package: None if package == "statsmodels" else package)
    with pytest.raises(TskdError, match=r"needs statsmodels, which is not installed: pip install 'tskd\[report\]'"):
        check_installed()
