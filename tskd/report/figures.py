"""Figures at the width of one column, legible in greyscale: marks and dashes tell the arms apart, not colours."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tskd.report.findings import ArmFindings, Findings, spent
from tskd.report.runs import Arm
from tskd.report.statistics import Estimate

WIDTH = 3.3  # inches
MOST_LINES = 6  # that can be told apart
MOST_PANELS = 6
LOOKS = ("o-", "s--", "^:", "D-.", "v-", "P--")
LIGHT, MIDDLE = "0.75", "0.45"
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "lines.markersize": 4,
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tskd",  # the same figure, the same file
    "figure.constrained_layout.use": True,
}
PAPERS_RULE = "tskd.stages.select.PplDifference"  # the one whose border is a line of perplexities, and a gap


def of(found: Findings) -> dict[str, Callable[[], Figure]]:
    """What can be drawn of these findings, by name."""
    drawn: dict[str, Callable[[], Figure]] = {}
    if any(_has(arm, "eval/accuracy") for arm in found.arms):
        drawn["arms"] = lambda: arms(found)
        drawn["cost"] = lambda: cost(found)
    if _lines(found):
        drawn["threshold"] = lambda: threshold(found)
    if any(run.kept or run.dropped for arm in found.study.arms for run in arm.runs):
        drawn["perplexities"] = lambda: perplexities(found)
        drawn["gaps"] = lambda: gaps(found)
    return drawn


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


def save(draw: Callable[[], Figure], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        figure = draw()
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def arms(found: Findings) -> Figure:
    """Each arm's accuracy: its runs, their mean and interval, between the untouched target and the teacher."""
    shown = [arm for arm in found.arms if _has(arm, "eval/accuracy")]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(shown)))
    axes = figure.subplots()
    for place, arm in enumerate(shown):
        runs = [
            100 * run.result["eval/accuracy"] for run in arm.arm.runs if run.result.get("eval/accuracy") is not None
        ]
        axes.plot(runs, [place] * len(runs), "|", color=MIDDLE, markersize=7)
        estimate = arm.metrics["eval/accuracy"] * 100
        axes.errorbar([estimate.mean], [place], xerr=_bars([estimate]), fmt="ko", capsize=2)
        for name, mark in (("eval/target_accuracy", "4"), ("eval/teacher_accuracy", "3")):
            if name in arm.metrics:
                axes.plot([100 * arm.metrics[name].mean], [place], mark, color="black", markersize=7)
    axes.set_yticks(range(len(shown)), [fill(arm.arm.label, 24) for arm in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"accuracy, points ({found.study.num_questions} questions)")
    marks = [
        Line2D([], [], marker="o", color="black", label=f"tuned, mean and 95 % interval ({_seeds(shown)})")
        if any(arm.metrics["eval/accuracy"].interval for arm in shown)
        else Line2D([], [], marker="o", color="black", linestyle="", label=f"tuned ({_seeds(shown)})"),
        Line2D([], [], marker="|", color=MIDDLE, linestyle="", markersize=7, label="a run"),
        Line2D([], [], marker="4", color="black", linestyle="", markersize=7, label="before"),
        Line2D([], [], marker="3", color="black", linestyle="", markersize=7, label="teacher"),
    ]
    figure.legend(handles=marks[:1], loc="outside upper left")
    figure.legend(handles=marks[1:], loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.3)
    return figure


def threshold(found: Findings) -> Figure:
    """Accuracy and kept fraction against the threshold, a line for each other setting."""
    lines = _lines(found)
    figure = Figure(figsize=(WIDTH, 3.2 + 0.14 * len(lines)))
    top, bottom = figure.subplots(2, 1, sharex=True)
    everyone = [arm for of_line in lines.values() for arm in of_line]
    width = max(map(_threshold, everyone)) - min(map(_threshold, everyone))
    asides = iter(0.012 * width * (np.arange(len(lines)) - (len(lines) - 1) / 2))  # so that bars do not cover bars
    for (label, of_line), look in zip(lines.items(), LOOKS, strict=False):
        aside = next(asides)
        for axes, metric in ((top, "eval/accuracy"), (bottom, "select/kept_fraction")):
            points = [(_threshold(arm) + aside, arm.metrics[metric] * 100) for arm in of_line if metric in arm.metrics]
            if points:
                places, estimates = zip(*points, strict=True)
                means = [estimate.mean for estimate in estimates]
                bars = _bars(estimates)
                axes.errorbar(places, means, yerr=bars, fmt=f"k{look}", markerfacecolor="white", capsize=2, label=label)
    _voices(top, everyone)
    top.set_ylabel(f"accuracy, points\n({found.study.num_questions} questions)")
    bottom.set_ylabel("kept, % of\nscored responses")
    bottom.set_xlabel(f"threshold, in the rule's unit ({_seeds(everyone)} a point)")
    for axes in (top, bottom):
        axes.set_ylim(-4, 104)
    handles, labels = bottom.get_legend_handles_labels()
    if len(lines) > 1:
        figure.legend(handles, [fill(label, 40) for label in labels], loc="outside upper left")
    return figure


def perplexities(found: Findings) -> Figure:
    """Base against teacher perplexity of every scored response; right of the dashed line, the paper's rule keeps."""

    def draw(axes: Axes, arm: Arm) -> None:
        looks: dict[str, Any] = {"dropped": {"facecolors": "white", "edgecolors": MIDDLE}, "kept": {"color": "black"}}
        for examples, look in looks.items():
            of_arm = [example for run in arm.runs for example in getattr(run, examples)]
            pairs = {(e.base_ppl, e.teacher_ppl) for e in of_arm if np.isfinite([e.base_ppl, e.teacher_ppl]).all()}
            if pairs:
                base, teacher = zip(*sorted(pairs), strict=True)
                size = float(np.clip(2000 / len(pairs), 0.5, 5))  # where there are many, so that they stay points
                axes.scatter(base, teacher, s=size, linewidths=min(0.4, size / 5), alpha=0.7, rasterized=True, **look)
        axes.set_xscale("log")
        axes.set_yscale("log")
        high = max(axes.get_ylim()[1], 2.2)
        surprise = np.geomspace(1, high)
        axes.plot(surprise, surprise, color=LIGHT, zorder=0)
        if (border := _border(arm)) is not None:
            axes.plot(surprise + border, surprise, "--", color=MIDDLE, zorder=0)
        axes.set_ylim(0.95, high)
        for axis, ticks in ((axes.xaxis, (1.0,)), (axes.yaxis, (1.0, 2.0, 5.0) if high < 30 else (1.0,))):
            axis.set_major_locator(LogLocator(subs=ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(_plain))

    return _panels(
        *(found, draw, "base, perplexity of the response", "teacher, perplexity"),
        [
            Line2D([], [], marker="o", color="black", linestyle="", markersize=3, label="kept"),
            Line2D(
                [], [], marker="o", color=MIDDLE, markerfacecolor="white", linestyle="", markersize=3, label="dropped"
            ),
            Line2D([], [], color=LIGHT, label="no gap"),
            Line2D([], [], color=MIDDLE, linestyle="--", label="threshold"),
        ],
    )


def gaps(found: Findings) -> Figure:
    """How many responses have which gap: dropped in white, kept in grey on top of them."""

    def draw(axes: Axes, arm: Arm) -> None:
        kept = [e.gap for run in arm.runs for e in run.kept if np.isfinite(e.gap)]
        dropped = [e.gap for run in arm.runs for e in run.dropped if np.isfinite(e.gap)]
        everything = np.arcsinh([*kept, *dropped])  # gaps go over many powers of ten, and below 0
        edges = np.sinh(np.linspace(everything.min() - 0.05, everything.max() + 0.05, 31))
        axes.hist([kept, dropped], list(edges), stacked=True, color=[MIDDLE, "white"], edgecolor="black", linewidth=0.4)
        axes.set_xscale("asinh")
        powers = [sign * 10**power for power in range(9) for sign in (-1, 1)]
        ticks = [0, *(power for power in powers if edges[0] <= power <= edges[-1])]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        if (border := _border(arm)) is not None:
            axes.axvline(border, color="black", linestyle="--")

    return _panels(
        *(found, draw, "gap, base − teacher perplexity", "responses"),
        [
            Patch(facecolor=MIDDLE, edgecolor="black", linewidth=0.4, label="kept"),
            Patch(facecolor="white", edgecolor="black", linewidth=0.4, label="dropped"),
            Line2D([], [], color="black", linestyle="--", label="threshold"),
        ],
    )


def cost(found: Findings) -> Figure:
    """Accuracy after each iteration against what had been spent by then: an arm's mean over its seeds."""
    able = sorted((arm for arm in found.arms if _has(arm, "eval/accuracy")), key=lambda arm: -_mean(arm))
    shown = able[:MOST_LINES]
    units = {"generated_tokens": "tokens generated", "trained_tokens": "tokens trained on", "seconds": "seconds"}
    figure = Figure(figsize=(WIDTH, 4.4 + 0.14 * len(shown)))
    panels = figure.subplots(3, 1, sharey=True)
    for axes, (name, unit) in zip(panels, units.items(), strict=True):
        for arm, look in zip(shown, LOOKS, strict=False):
            paid, accuracy = _trajectory(arm, name)
            axes.plot(paid, accuracy, f"k{look}", markerfacecolor="white", label=arm.arm.label)
        _voices(axes, shown, named=axes is panels[0])
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(left=0)
        axes.set_ylim(-4, 104)
    figure.supylabel(f"accuracy, points ({found.study.num_questions} questions, {_seeds(shown)})", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    said = "" if len(able) == len(shown) else f"the {len(shown)} best of {len(able)} arms"
    if len(shown) > 1:
        legend = figure.legend(handles, [fill(label, 44) for label in labels], loc="outside upper left", title=said)
        legend.get_title().set_fontsize(7)
    return figure


def _panels(
    found: Findings, draw: Callable[[Axes, Arm], None], xlabel: str, ylabel: str, handles: Sequence[Any]
) -> Figure:
    """A panel for each arm; arms that differ in the target alone, of which the gap knows nothing, share one."""
    every: list[Arm] = []
    for arm in found.study.arms:
        if (drawn := _drawn(arm))[1] and all(drawn != _drawn(other) for other in every):
            every.append(arm)
    shown = every[:MOST_PANELS]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + (2.2 if columns == 1 else 1.35) * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for arm, axes in zip(shown, grid.flat, strict=False):
        draw(axes, arm)
        kept, dropped = (sum(len(getattr(run, side)) for run in arm.runs) for side in ("kept", "dropped"))
        label = "" if len(every) == 1 else fill(_part(arm, every), 24) + "\n"
        axes.set_title(f"{label}{kept} of {kept + dropped} kept, {_runs(arm)}", fontsize=7)
    for place, axes in enumerate(grid.flat[len(shown) :], len(shown)):
        axes.set_visible(False)
        grid.flat[place - columns].tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    title = None if len(every) == len(shown) else f"the first {len(shown)} of {len(every)} ways of selecting"
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1, handletextpad=0.4, title=title)
    return figure


def _runs(arm: Arm) -> str:
    return "1 run" if len(arm.runs) == 1 else f"{len(arm.runs)} runs"


def _drawn(arm: Arm) -> tuple[float | None, list[tuple[float, float, bool]]]:
    sides = ((run.kept, True) if kept else (run.dropped, False) for run in arm.runs for kept in (True, False))
    points = sorted((example.base_nll, example.teacher_nll, kept) for examples, kept in sides for example in examples)
    return _border(arm), points


def _part(arm: Arm, others: Sequence[Arm]) -> str:
    """The parts of its label that tell it from the others."""
    parts = arm.label.split(", ")
    return ", ".join(part for part in parts if not all(part in other.label.split(", ") for other in others))


def _border(arm: Arm) -> float | None:
    return arm.threshold if arm.settings.get("selection._target_") == PAPERS_RULE else None


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:g}"


def _has(arm: ArmFindings, metric: str) -> bool:
    return metric in arm.metrics


def _mean(arm: ArmFindings) -> float:
    return arm.metrics["eval/accuracy"].mean


def _lines(found: Findings) -> dict[str, list[ArmFindings]]:
    """The arms at two thresholds or more, by what else is set in them: the first ``MOST_LINES``."""
    lines: dict[str, list[ArmFindings]] = {}
    for arm in found.arms:
        if arm.arm.threshold is not None:
            others = [part for part in arm.arm.label.split(", ") if not part.startswith("threshold=")]
            lines.setdefault(", ".join(others), []).append(arm)
    swept = {
        label: sorted(line, key=_threshold) for label, line in lines.items() if len(set(map(_threshold, line))) > 1
    }
    return dict(islice(swept.items(), MOST_LINES))


def _threshold(arm: ArmFindings) -> float:
    assert arm.arm.threshold is not None
    return arm.arm.threshold


def _bars(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Distances to the ends of the intervals; nothing is drawn where there is none."""
    ends = [(e.mean, *(e.interval or (np.nan, np.nan))) for e in estimates]
    return [[mean - low for mean, low, _ in ends], [high - mean for mean, _, high in ends]]


def _voices(axes: Axes, shown: Sequence[ArmFindings], named: bool = True) -> None:
    """A line for each accuracy that a teacher or an untouched target has; the highest is named."""
    for name, label, dashes in (("teacher", "teacher", (6, 2)), ("target", "before", (1, 2))):
        values = {round(a.metrics[f"eval/{name}_accuracy"].mean, 6) for a in shown if _has(a, f"eval/{name}_accuracy")}
        for value in values:
            axes.axhline(100 * value, color=MIDDLE, linewidth=0.8, dashes=dashes, zorder=0)
        if values and named:
            place = (1.01, 100 * max(values))
            coordinates = ("axes fraction", "data")
            axes.annotate(label, place, xycoords=coordinates, va="center", fontsize=6.5, color=MIDDLE)


def _trajectory(arm: ArmFindings, cost: str) -> tuple[list[float], list[float]]:
    """Spent and reached after each iteration that all seeds have, means over the seeds."""
    paid, reached = [], []
    length = min(len(run.rows) for run in arm.arm.runs)
    for index in range(length):
        accuracies = [run.rows[index].get("eval/accuracy") for run in arm.arm.runs]
        if None not in accuracies:
            sums = [sum(spent(row, cost) for row in run.rows[: index + 1]) for run in arm.arm.runs]
            paid.append(float(np.mean(sums)))
            reached.append(100 * float(np.mean(np.array(accuracies, dtype=float))))
    return paid, reached


def _seeds(shown: Sequence[ArmFindings]) -> str:
    counts = sorted({len(arm.arm.runs) for arm in shown})
    return f"{' or '.join(map(str, counts))} seed" + "s" * (counts != [1])
