"""The tables of ``experiments/README.md``, made from the committed results: ``python experiments/tables.py``."""

import json
from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "target before": "eval/target_accuracy",
    "teacher": "eval/teacher_accuracy",
    "target after": "eval/accuracy",
    "general after": "eval/general_accuracy",
    "kept": "select/kept",
    "precision": "select/precision",
    "recall": "select/recall",
}
SELECTED = {
    "kept": "select/kept",
    "precision": "select/precision",
    "recall": "select/recall",
    "tokens trained": "cost/trained_tokens",
}
RULES = {
    "the paper's rule": "ppl_difference",
    "seed_shift": "seed_shift",
    "random": "random",
    "no filter": "all",
}


def read(name: str) -> dict[str, float]:
    return json.loads((RESULTS / f"{name}.json").read_text())  # type: ignore[no-any-return]


def table(rows: dict[str, dict[str, float]], label: str, spread: bool) -> str:
    """A Markdown table with a row for each result, and mean ± standard deviation below them where asked."""
    lines = [f"| {label} | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, result in rows.items():
        lines.append(f"| {name} | " + " | ".join(_show(result[key]) for key in COLUMNS.values()) + " |")
    if spread:
        cells = [f"{_show(fmean(values))} ± {_show(stdev(values))}" for values in _columns(list(rows.values()))]
        lines.append(f"| mean ± sd, n = {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def default_table() -> str:
    return table({str(seed): read(f"atlas_seed={seed}") for seed in (0, 1, 2)}, "seed", spread=True)


def threshold_table() -> str:
    rows = {}
    for threshold, suffix in (("0", ",threshold=0"), ("0.5", ",threshold=0.5"), ("1.5", ""), ("4", ",threshold=4")):
        rows |= {f"{threshold}, seed {seed}": read(f"atlas_seed={seed}{suffix}") for seed in (0, 1)}
    return table(rows, "threshold", spread=False)


def replay_table() -> str:
    rows = {}
    prefixes = {"none": "replay=none,", "KL, weight 1": "weight=1,", "KL, weight 3": "weight=3,", "KL, weight 10": ""}
    for label, prefix in prefixes.items():
        results = [read(f"atlas_{prefix}seed={seed}") for seed in (0, 1, 2)]
        rows[label] = [f"{_show(fmean(values))} ± {_show(stdev(values))}" for values in _columns(results)]
    lines = ["| replay | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def transfer_table() -> str:
    """SmolLM2 to Gemma 3 on BBH tasks: means over the seeds that were run to the end."""
    thresholds = {f"τ = {value}": f"threshold={value}" for value in ("0.5", "1.5")}
    arms = {"no filter": "all", **thresholds, "original data": "original_data"}
    head = ["task", "base", "teacher", "target before", *arms, "kept at 0.5", "kept at 1.5"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    folder = RESULTS / "smollm2_to_gemma3_bbh"
    for task in sorted({file.name.split(",")[0] for file in folder.glob("*.json")}):
        found = {
            arm: [json.loads(file.read_text())["result"] for file in sorted(folder.glob(f"{task},{arm},*.json"))]
            for arm in arms.values()
        }
        one = found["threshold=1.5"][0]
        known = [_show(one[f"eval/{voice}_accuracy"]) for voice in ("base", "teacher", "target")]
        cells = [_spread([result["eval/accuracy"] for result in results]) for results in found.values()]
        kept = [_spread([r["select/kept_fraction"] for r in found[f"threshold={t}"]]) for t in ("0.5", "1.5")]
        lines.append("| " + " | ".join([task, *known, *cells, *kept]) + " |")
    return "\n".join(lines)


def pair_table() -> str:
    """SmolLM2 to Gemma 3 on BBH tasks at one budget, arm by arm; below, the mean over the tasks of each seed."""
    arms = {
        "original data": "original_data",
        "no filter": "all",
        "random": "random",
        "the paper's rule": "ppl_difference",
        "recommended": "recommended",
    }
    results = json.loads((RESULTS / "smollm2_to_gemma3_arms.json").read_text())
    tasks = sorted({word for job in results for word in job.split(",") if word.startswith("task.subset=")})
    seeds = sorted({word for job in results for word in job.split(",") if word.startswith("seed=")}) or [""]

    def of(arm: str, *overrides: str) -> list[dict[str, float]]:
        return [result for job, result in results.items() if {f"arms/{arm}]", *overrides} <= set(job.split(","))]

    lines = [f"| task | teacher | target before | {' | '.join(arms)} |", "|---" * (len(arms) + 3) + "|"]
    for task in tasks:
        (first, *_) = of("original_data", task)
        known = [_show(first[f"eval/{voice}_accuracy"]) for voice in ("teacher", "target")]
        cells = [_of_seeds([each["eval/accuracy"] for each in of(arm, task)]) for arm in arms.values()]
        lines.append("| " + " | ".join([task.removeprefix("task.subset="), *known, *cells]) + " |")
    by_seed = {arm: [of(arm, *filter(None, [seed])) for seed in seeds] for arm in arms.values()}  # one: in no name
    means = [
        _of_seeds([fmean(r["eval/accuracy"] for r in found) for found in of_arm if len(found) == len(tasks)])
        for of_arm in by_seed.values()
    ]
    lines.append("| " + " | ".join([f"mean over {len(tasks)} tasks", "", "", *means]) + " |")
    return "\n".join(lines)


def _of_seeds(values: list[float]) -> str:
    return f"{_mean(values)} (n = {len(values)})" if values else "not run"


def teacher_table() -> str:
    """A SmolLM2 fine-tuned on each BBH task."""
    rows = json.loads((RESULTS / "smollm2_bbh_teachers.json").read_text())
    lines = ["| task | n | base | teacher |", "|---|---|---|---|"]
    for task, card in rows.items():
        base, teacher = (
            f"{card[f'{voice}_accuracy']:.3f} ± {card[f'{voice}_standard_error']:.3f}" for voice in ("base", "teacher")
        )
        lines.append(f"| {task} | {card['num_held_out']} | {base} | {teacher} |")
    return "\n".join(lines)


def expansion_table() -> str:
    """What each expansion has written in the embedded world."""
    names = ("new", "duplicates", "near_duplicates", "malformed")
    lines = ["| expansion | new | repeats | near-duplicates | malformed | kept | precision |", "|---" * 7 + "|"]
    for expansion, result in json.loads((RESULTS / "atlas_expansions.json").read_text()).items():
        counts = [str(result[f"prompts/{name}"]) for name in names]
        kept = [_show(result[f"select/{name}"]) if "select/kept" in result else "–" for name in ("kept", "precision")]
        lines.append("| " + " | ".join([expansion, *counts, *kept]) + " |")
    return "\n".join(lines)


def auto_threshold_table() -> str:
    """`threshold=auto` among fixed ones, in the embedded world."""
    rows = {threshold: f"threshold={threshold}" for threshold in ("auto", "0", "0.5", "1.5", "4", "16", "64")}
    return sweep_table("atlas_auto_threshold", {label: {override} for label, override in rows.items()}, "threshold")


def pair_threshold_table() -> str:
    """`threshold=auto` among fixed ones, on a BBH task from SmolLM2 to Gemma 3."""
    columns = {
        "its value": "select/threshold",
        "kept": "select/kept",
        "kept fraction": "select/kept_fraction",
        "target before": "eval/target_accuracy",
        "teacher": "eval/teacher_accuracy",
        "target after": "eval/accuracy",
    }
    rows = {threshold: {f"threshold={threshold}"} for threshold in ("auto", "0.5", "1.5", "16")}
    return sweep_table("smollm2_to_gemma3_threshold", rows, "threshold", columns)


def polluted_table() -> str:
    """Rules on pools of the embedded world that are polluted more and more."""
    rules = {"the paper's rule": "ppl_difference", "recommended": "recommended", **RULES}
    rows = {
        f"{float(share):.0%}, {label}": {f"+expansion.off_task={share}", f"selection={rule}"}
        for share in ("0", "0.25", "0.5", "0.75")
        for label, rule in rules.items()
    }
    return sweep_table("atlas_polluted", rows, "off-task, filter")


def screen_table() -> str:
    """What a screen saves and costs, in clean and in polluted pools of the embedded world."""
    columns = {
        "target after": "eval/accuracy",
        "new prompts": "prompts/new",
        "not asked": "prompts/screened",
        "kept": "select/kept",
        "tokens generated": "cost/generated_tokens",
        "tokens scored": "cost/scored_tokens",
    }
    screens = {"none": "+selection.screen=null"}
    screens |= {name: f"selection/screen={name}" for name in ("seed_likeness", "seed_shift")}
    rows = {
        f"{float(share):.0%}, {label}": {f"+expansion.off_task={share}", screen}
        for share in ("0", "0.75")
        for label, screen in screens.items()
    }
    return sweep_table("atlas_screens", rows, "off-task, screen", columns)


def seed_prompts_table() -> str:
    """How many seed prompts? Accuracy is on the questions that are no seed in any row."""
    columns = {"target after": "eval/common_accuracy", "new prompts": "prompts/new", **SELECTED}
    rows = {str(number): {f"task.num_seeds={number}"} for number in (2, 4, 8, 16, 32)}
    return sweep_table("atlas_seed_prompts", rows, "seed prompts", columns)


def wrong_teacher_table() -> str:
    """Does a teacher that was taught one fact in ten wrong spread its errors?"""
    columns = {
        "teacher": "eval/teacher_accuracy",
        "target after": "eval/accuracy",
        "on the right facts": "right/accuracy",
        "wrong asked": "wrong/asked",
        "wrong kept": "wrong/kept_fraction",
        "right kept": "right/kept_fraction",
        "errors repeated by teacher": "wrong/repeated_by_teacher",
        "by target": "wrong/repeated_by_target",
    }
    rules = {
        "the paper's rule": "ppl_difference",
        "recommended": "recommended",
        "confident teacher": "confident_teacher",
        "no filter": "all",
    }
    rows = {label: {f"selection={rule}"} for label, rule in rules.items()}
    return sweep_table("atlas_wrong_teacher", rows, "filter", columns)


def generator_table() -> str:
    """What each expansion writes, with the paper's rule and, but for ``self``, without a filter."""
    columns = {
        "target after": "eval/accuracy",
        "general after": "eval/general_accuracy",
        "new prompts": "prompts/new",
        "malformed": "prompts/malformed",
        **SELECTED,
    }
    rows = {
        f"{expansion}, {label}": {f"expansion={expansion}", f"selection={RULES[label]}"}
        for expansion in ("few_shot", "numbered_list", "evolve", "self")
        for label in ("the paper's rule", "no filter")
        if (expansion, label) != ("self", "no filter")  # not run
    }
    return sweep_table("atlas_generators", rows, "generator, filter", columns)


def rule_table() -> str:
    """Every rule that needs no private data, and thresholds of the paper's, on the same responses."""
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
    columns = {"kept": "select/kept", "precision": "select/precision", "recall": "select/recall", "facts kept": "facts"}
    rows = {f"{rule} | {level}": {rule, level} for rule, of_rule in levels.items() for level in of_rule}
    return sweep_table("atlas_rules", rows, "rule | threshold", columns)


def label_table() -> str:
    """The nll of the teacher's texts, alone and beside how sure it was."""
    columns = {"target after": "eval/accuracy", "general after": "eval/general_accuracy", "train/loss": "train/loss"}
    rows = {name: {f"training={name}"} for name in ("lora", "soft_labels")}
    return sweep_table("atlas_labels", rows, "training", columns)


def failure_table() -> str:
    """Where the method breaks: one setting each, the others as in the other answers."""
    rows = {
        "10 drafts instead of 300": {"expansion.num_drafts=10"},
        "drafts at temperature 0.2": {"expansion.temperature=0.2"},
        "drafts at temperature 2": {"expansion.temperature=2.0"},
        "10 epochs instead of 40": {"task.epochs=10"},
        "a tenth of the learning rate": {"training.lora.learning_rate=0.0002"},
        "the target as a stand-in for the base": {"base_for_scoring=atlas_neox"},
    }
    columns = {"target after": "eval/accuracy", "new prompts": "prompts/new", **SELECTED, "train/loss": "train/loss"}
    return sweep_table("atlas_fails", rows, "setting", columns)


def sweep_table(name: str, rows: dict[str, set[str]], label: str, columns: dict[str, str] | None = None) -> str:
    """A row for all results of ``name`` that have its overrides: means ± standard deviations over the seeds."""
    columns = columns or {"target after": "eval/accuracy", **SELECTED}
    results = json.loads((RESULTS / f"{name}.json").read_text())
    head = f"| {label} | runs | " + " | ".join(columns) + " |"
    lines = [head, "|---" * (head.count(" | ") + 1) + "|"]
    for row, overrides in rows.items():
        found = [result for job, result in results.items() if overrides <= set(job.split(","))]
        cells = [_mean([result[key] for result in found if result.get(key) is not None]) for key in columns.values()]
        lines.append(f"| {row} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    form = ",.0f" if all(isinstance(value, int) for value in values) else ".3f"
    sd = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{sd}"


def _spread(values: list[float]) -> str:
    """Mean, and the values that it is of: with two seeds, a standard deviation would say less."""
    if not values:
        return "not run"
    return f"{fmean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _columns(results: list[dict[str, float]]) -> list[list[float]]:
    return [[result[key] for result in results] for key in COLUMNS.values()]


def _show(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}".removesuffix(".0")


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
