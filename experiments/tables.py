"""Make the tables of ``experiments/README.md`` from the committed results.

python experiments/tables.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tskd.report.statistics import Estimate, mean_and_sd, numbers, summarise
from tskd.report.table_writer import Column, Value, columns, format_value, to_markdown

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "eval/target_accuracy": Column("target before", 3),
    "eval/teacher_accuracy": Column("teacher", 3),
    "eval/accuracy": Column("target after", 3),
    "eval/common_accuracy": Column("target after", 3),
    "eval/general_accuracy": Column("general after", 3),
    "prompts/new": Column("new prompts"),
    "prompts/malformed": Column("malformed"),
    "prompts/screened": Column("not asked"),
    "select/threshold": Column("its value", 3),
    "select/kept": Column("kept"),
    "select/kept_fraction": Column("kept fraction", 3),
    "select/precision": Column("precision", 3),
    "select/recall": Column("recall", 3),
    "facts": Column("facts kept", 3),
    "train/loss": Column("train/loss", 3),
    "cost/trained_tokens": Column("tokens trained"),
    "cost/generated_tokens": Column("tokens generated"),
    "cost/scored_tokens": Column("tokens scored"),
    "right/accuracy": Column("on the right facts", 3),
    "wrong/asked": Column("wrong asked"),
    "wrong/kept_fraction": Column("wrong kept", 3),
    "right/kept_fraction": Column("right kept", 3),
    "wrong/repeated_by_teacher": Column("errors repeated by teacher", 3),
    "wrong/repeated_by_target": Column("by target", 3),
}
VOICES = ("eval/target_accuracy", "eval/teacher_accuracy", "eval/accuracy")
KEPT = ("select/kept", "select/precision", "select/recall")
SELECTED = (*KEPT, "cost/trained_tokens")
RULES = {
    "the paper's rule": "ppl_difference",
    "seed_shift": "seed_shift",
    "random": "random",
    "no filter": "all",
}


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> str:
    """Make a row for each group of results: means ± standard deviations."""
    names = (*VOICES, "eval/general_accuracy", *KEPT)
    rows = [[name, *map(_show, summarise(results, names))] for name, results in groups.items()]
    return to_markdown([Column(label), *map(COLUMNS.__getitem__, names)], rows)


def default_table() -> str:
    results = {str(seed): [read(f"atlas_seed={seed}")] for seed in (0, 1, 2)}
    return table({**results, "mean ± sd, n = 3": [each for (each,) in results.values()]}, "seed")


def threshold_table() -> str:
    suffixes = {"0": ",threshold=0", "0.5": ",threshold=0.5", "1.5": "", "4": ",threshold=4"}
    groups = {
        f"{threshold}, seed {seed}": [read(f"atlas_seed={seed}{suffix}")]
        for threshold, suffix in suffixes.items()
        for seed in (0, 1)
    }
    return table(groups, "threshold")


def replay_table() -> str:
    prefixes = {"none": "replay=none,", "KL, weight 1": "weight=1,", "KL, weight 3": "weight=3,", "KL, weight 10": ""}
    groups = {name: [read(f"atlas_{prefix}seed={seed}") for seed in (0, 1, 2)] for name, prefix in prefixes.items()}
    return table(groups, "replay")


def transfer_table() -> str:
    """Compare thresholds from SmolLM2 to Gemma 3 on BBH tasks, over completed seeds."""
    thresholds = {f"τ = {value}": f"threshold={value}" for value in ("0.5", "1.5")}
    arms = {"no filter": "all", **thresholds, "original data": "original_data"}
    folder, rows = RESULTS / "smollm2_to_gemma3_bbh", list[list[Value]]()
    for task in sorted({file.name.split(",")[0] for file in folder.glob("*.json")}):
        found = {
            arm: [json.loads(file.read_text())["result"] for file in sorted(folder.glob(f"{task},{arm},*.json"))]
            for arm in arms.values()
        }
        known = [found["threshold=1.5"][0][f"eval/{voice}_accuracy"] for voice in ("base", "teacher", "target")]
        cells = [_with_values(results, "eval/accuracy") for results in found.values()]
        kept = [_with_values(found[arm], "select/kept_fraction") for arm in thresholds.values()]
        rows.append([task, *known, *cells, *kept])
    heads = columns("task", "base", "teacher", "target before", *arms, "kept at 0.5", "kept at 1.5", digits=3)
    return to_markdown(heads, rows)


def _with_values(results: Sequence[Mapping[str, Any]], name: str) -> str:
    """Show a mean and its values: of two seeds, a standard deviation would say less."""
    values = numbers(results, name)
    return f"{fmean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})" if values else "not run"


def pair_table() -> str:
    """Compare arms from SmolLM2 to Gemma 3 on BBH tasks at one budget.

    The last row averages over the tasks, seed by seed.
    """
    arms = {
        "original data": "original_data",
        "no filter": "all",
        "random": "random",
        "the paper's rule": "ppl_difference",
        "recommended": "recommended",
    }
    results = read("smollm2_to_gemma3_arms")
    tasks = sorted({word for job in results for word in job.split(",") if word.startswith("task.subset=")})
    seeds = sorted({word for job in results for word in job.split(",") if word.startswith("seed=")}) or [""]

    def accuracies(arm: str, *overrides: str) -> list[float]:
        return numbers(_matching(results, {f"arms/{arm}]", *overrides}), "eval/accuracy")

    rows: list[list[Value]] = []
    for task in tasks:
        first = _matching(results, {"arms/original_data]", task})[0]
        known = [first[f"eval/{voice}_accuracy"] for voice in ("teacher", "target")]
        cells = [_of_seeds(accuracies(arm, task)) for arm in arms.values()]
        rows.append([task.removeprefix("task.subset="), *known, *cells])
    by_seed = {arm: [accuracies(arm, *filter(None, [seed])) for seed in seeds] for arm in arms.values()}
    means = [_of_seeds([fmean(each) for each in of_arm if len(each) == len(tasks)]) for of_arm in by_seed.values()]
    rows.append([f"mean over {len(tasks)} tasks", "", "", *means])
    return to_markdown(columns("task", "teacher", "target before", *arms, digits=3), rows)


def _of_seeds(values: list[float]) -> str:
    return f"{format_value(mean_and_sd(values), 3)} (n = {len(values)})" if values else "not run"


def teacher_table() -> str:
    """Show a SmolLM2 fine-tuned on each BBH task."""
    rows: list[list[Value]] = []
    for task, card in read("smollm2_bbh_teachers").items():
        n = card["num_held_out"]
        voices = (Estimate(card[f"{v}_accuracy"], n, card[f"{v}_standard_error"]) for v in ("base", "teacher"))
        rows.append([task, n, *voices])
    return to_markdown(columns("task", "n", "base", "teacher", digits=3), rows)


def expansion_table() -> str:
    """Show what each expansion has written in the embedded world."""
    shown = {
        "prompts/new": Column("new"),
        "prompts/duplicates": Column("repeats"),
        "prompts/near_duplicates": Column("near-duplicates"),
        "prompts/malformed": Column("malformed"),
        "select/kept": Column("kept"),
        "select/precision": Column("precision", 3),
    }
    rows = [[expansion, *map(result.get, shown)] for expansion, result in read("atlas_expansions").items()]
    return to_markdown([Column("expansion"), *shown.values()], rows)


def auto_threshold_table() -> str:
    """Compare `threshold=auto` with fixed ones, in the embedded world."""
    rows = {threshold: {f"threshold={threshold}"} for threshold in ("auto", "0", "0.5", "1.5", "4", "16", "64")}
    return sweep_table("atlas_auto_threshold", rows, "threshold")


def pair_threshold_table() -> str:
    """Compare `threshold=auto` with fixed ones, on a BBH task from SmolLM2 to Gemma 3."""
    names = ("select/threshold", "select/kept", "select/kept_fraction", *VOICES)
    rows = {threshold: {f"threshold={threshold}"} for threshold in ("auto", "0.5", "1.5", "16")}
    return sweep_table("smollm2_to_gemma3_threshold", rows, "threshold", names)


def polluted_table() -> str:
    """Compare rules on pools of the embedded world that are polluted more and more."""
    rules = {"the paper's rule": "ppl_difference", "recommended": "recommended", **RULES}
    rows = {
        f"{float(share):.0%}, {label}": {f"+expansion.off_task={share}", f"selection={rule}"}
        for share in ("0", "0.25", "0.5", "0.75")
        for label, rule in rules.items()
    }
    return sweep_table("atlas_polluted", rows, "off-task, filter")


def screen_table() -> str:
    """Show what a screen saves and costs, in clean and in polluted pools."""
    names = (
        "eval/accuracy",
        "prompts/new",
        "prompts/screened",
        "select/kept",
        "cost/generated_tokens",
        "cost/scored_tokens",
    )
    screens = {"none": "+selection.screen=null"}
    screens |= {name: f"selection/screen={name}" for name in ("seed_likeness", "seed_shift")}
    rows = {
        f"{float(share):.0%}, {label}": {f"+expansion.off_task={share}", screen}
        for share in ("0", "0.75")
        for label, screen in screens.items()
    }
    return sweep_table("atlas_screens", rows, "off-task, screen", names)


def seed_prompts_table() -> str:
    """Vary the number of seeds; accuracy is on the questions that are seeds in no row."""
    names = ("eval/common_accuracy", "prompts/new", *SELECTED)
    rows = {str(number): {f"task.num_seeds={number}"} for number in (2, 4, 8, 16, 32)}
    return sweep_table("atlas_seed_prompts", rows, "seed prompts", names)


def wrong_teacher_table() -> str:
    """Show whether a teacher that was taught one fact in ten wrong spreads its errors."""
    names = (
        "eval/teacher_accuracy",
        "eval/accuracy",
        "right/accuracy",
        "wrong/asked",
        "wrong/kept_fraction",
        "right/kept_fraction",
        "wrong/repeated_by_teacher",
        "wrong/repeated_by_target",
    )
    rules = {
        "the paper's rule": "ppl_difference",
        "recommended": "recommended",
        "confident teacher": "confident_teacher",
        "no filter": "all",
    }
    rows = {label: {f"selection={rule}"} for label, rule in rules.items()}
    return sweep_table("atlas_wrong_teacher", rows, "filter", names)


def generator_table() -> str:
    """Compare what expansions write, with the paper's rule and without a filter."""
    names = ("eval/accuracy", "eval/general_accuracy", "prompts/new", "prompts/malformed", *SELECTED)
    rows = {
        f"{expansion}, {label}": {f"expansion={expansion}", f"selection={RULES[label]}"}
        for expansion in ("few_shot", "numbered_list", "evolve", "self")
        for label in ("the paper's rule", "no filter")
        if (expansion, label) != ("self", "no filter")  # not run
    }
    return sweep_table("atlas_generators", rows, "generator, filter", names)


def rule_table() -> str:
    """Compare rules that need no private data, and thresholds, on the same responses."""
    levels = {
        "ppl_difference": ("0", "0.5", "1.5", "4", "16", "64", "256", "auto"),
        "log_ppl_difference": ("0.4",),
        "ppl_ratio": ("1.5",),
        "inverse_ppl_difference": ("0.1",),
        "kl": ("0.4",),
        "target_gap": ("0.2",),
        "confident_teacher": ("2 and 3.5",),
        "seed_shift": ("0.3", "auto"),
        "seed_likeness": ("auto",),
        "seed_gap": ("auto", "auto and recall 0.9"),
        "top_gap": ("best half",),
        "quantile": ("best half",),
        "random": ("as many as 1.5",),
        "all": ("–",),
    }
    names = (*KEPT, "facts")
    rows = {(rule, level): {rule, level} for rule, of_rule in levels.items() for level in of_rule}
    return sweep_table("atlas_rules", rows, ("rule", "threshold"), names)


def label_table() -> str:
    """Compare training on the teacher's texts alone with training on soft labels too."""
    names = ("eval/accuracy", "eval/general_accuracy", "train/loss")
    rows = {name: {f"training={name}"} for name in ("lora", "soft_labels")}
    return sweep_table("atlas_labels", rows, "training", names)


def failure_table() -> str:
    """Show where the method breaks, one setting in each row."""
    rows = {
        "10 drafts instead of 300": {"expansion.num_drafts=10"},
        "drafts at temperature 0.2": {"expansion.temperature=0.2"},
        "drafts at temperature 2": {"expansion.temperature=2.0"},
        "10 epochs instead of 40": {"task.epochs=10"},
        "a tenth of the learning rate": {"training.lora.learning_rate=0.0002"},
        "the target as a stand-in for the base": {"base_for_scoring=atlas_neox"},
    }
    names = ("eval/accuracy", "prompts/new", *SELECTED, "train/loss")
    return sweep_table("atlas_fails", rows, "setting", names)


def sweep_table(
    file: str,
    rows: Mapping[Any, set[str]],
    labels: str | tuple[str, ...],
    names: Sequence[str] = ("eval/accuracy", *SELECTED),
) -> str:
    """Make a row for all results of a sweep that have its overrides: means ± sd.

    Args:
        file: The name of the file of results.
        rows: The overrides, by the label of the row or by its labels.
        labels: The heads of these labels.
        names: The metrics to show.
    """
    results, cells = read(file), []
    for row, overrides in rows.items():
        found = _matching(results, overrides)
        cells.append([*_tuple(row), len(found), *summarise(found, names)])
    return to_markdown([*columns(*_tuple(labels), "runs"), *map(COLUMNS.__getitem__, names)], cells)


def _matching(results: Mapping[str, dict[str, Any]], overrides: set[str]) -> list[dict[str, Any]]:
    """Return the results of the jobs that have all overrides."""
    return [result for job, result in results.items() if overrides <= set(job.split(","))]


def _tuple(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else labels


def _show(estimate: Estimate | None) -> str:
    """Show numbers up to 1 with three digits, others with one unless they are whole."""
    parts = [] if estimate is None else [estimate.mean, estimate.sd]
    return " ± ".join(f"{x:.3f}" if x <= 1 else f"{x:.1f}".removesuffix(".0") for x in parts if x is not None)


ANSWERS = (seed_prompts_table, wrong_teacher_table, generator_table, rule_table, label_table, failure_table)

if __name__ == "__main__":
    others = (
        default_table,
        threshold_table,
        auto_threshold_table,
        pair_threshold_table,
        polluted_table,
        screen_table,
        replay_table,
    )
    print("\n\n".join(table() for table in (*ANSWERS, *others, expansion_table, transfer_table, teacher_table)))
