"""Draw figures at the width of one column, legible in greyscale.

Marks and dashes tell the arms apart, not colours.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from tskd.report.findings import ACCURACY, ArmFindings, Findings, spent
from tskd.report.runs import Arm
from tskd.report.statistics import Estimate

WIDTH = 3.3  # inches
MAX_LINES = 6  # that can be told apart
MAX_PANELS = 6
LOOKS = ("o-", "s--", "^:", "D-.", "v-", "P--")
LIGHT, MIDDLE = "0.75", "0.45"
STYLE = Path(__file__).with_suffix(".mplstyle")
PAPERS_RULE = "tskd.stages.select.PplDifference"  # the one whose border is a line of perplexities, and a gap


def figures_of(found: Findings) -> dict[str, Callable[[], Figure]]:
    """Choose the figures that these findings have data for, by name."""
    drawn: list[Callable[[Findings], Figure]] = []
    if _evaluated(found):
        drawn += [arms, cost]
    if _lines(found):
        drawn.append(threshold)
    if any(arm.scored for arm in found.study.arms):
        drawn += [perplexities, gaps]
    return {draw.__name__: partial(draw, found) for draw in drawn}


@contextmanager
def style() -> Iterator[None]:
    with matplotlib.rc_context(fname=STYLE):
        yield


def save(draw: Callable[[], Figure], folder: Path, name: str) -> None:
    """Draw a figure and save it as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        figure = draw()
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def arms(found: Findings) -> Figure:
    """Draw each arm's runs, mean and interval, between untouched target and teacher."""
    shown = _evaluated(found)
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(shown)))
    axes = figure.subplots()
    for place, arm in enumerate(shown):
        runs = [100 * run.result[ACCURACY] for run in arm.arm.runs if run.result.get(ACCURACY) is not None]
        axes.plot(runs, [place] * len(runs), "|", color=MIDDLE, markersize=7)
        estimate = arm.metrics[ACCURACY] * 100
        axes.errorbar([estimate.mean], [place], xerr=_bars([estimate]), fmt="ko", capsize=2)
        for name, mark in (("eval/target_accuracy", "4"), ("eval/teacher_accuracy", "3")):
            if name in arm.metrics:
                axes.plot([100 * arm.metrics[name].mean], [place], mark, color="black", markersize=7)
    axes.set_yticks(range(len(shown)), [fill(arm.arm.label, 24) for arm in shown])
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    xlabel = f"accuracy, points ({found.study.num_questions} questions)"
    axes.set(xlim=(-3, 103), ylim=(len(shown) - 0.5, -0.5), axisbelow=True, xlabel=xlabel)
    has_interval = any(arm.metrics[ACCURACY].interval for arm in shown)
    words = f"tuned{', mean and 95 % interval' * has_interval} ({_seeds(shown)})"
    figure.legend(handles=[_mark(words, "o", linestyle="-" * has_interval)], loc="outside upper left")
    looks = {"a run": ("|", MIDDLE), "before": ("4", "black"), "teacher": ("3", "black")}
    marks = [_mark(label, *look, markersize=7) for label, look in looks.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.3)
    return figure


def threshold(found: Findings) -> Figure:
    """Draw accuracy and kept fraction by threshold, a line for each other setting."""
    lines = _lines(found)
    figure = Figure(figsize=(WIDTH, 3.2 + 0.14 * len(lines)))
    top, bottom = figure.subplots(2, 1, sharex=True)
    everyone = [arm for line in lines.values() for _, arm in line]
    width = np.ptp([threshold for line in lines.values() for threshold, _ in line])
    for number, ((label, line), marker) in enumerate(zip(lines.items(), LOOKS, strict=False)):
        aside = 0.012 * width * (number - (len(lines) - 1) / 2)  # so that bars do not cover bars
        for axes, metric in ((top, ACCURACY), (bottom, "select/kept_fraction")):
            points = [(place + aside, arm.metrics[metric] * 100) for place, arm in line if metric in arm.metrics]
            places, bars = [place for place, _ in points], _bars([estimate for _, estimate in points])
            means, look = [estimate.mean for _, estimate in points], {"fmt": f"k{marker}", "markerfacecolor": "white"}
            axes.errorbar(places, means, yerr=bars, capsize=2, label=label, **look)
    _voices(top, everyone)
    top.set(ylabel=f"accuracy, points\n({found.study.num_questions} questions)", ylim=(-4, 104))
    bottom.set(ylabel="kept, % of\nscored responses", ylim=(-4, 104))
    bottom.set_xlabel(f"threshold, in the rule's unit ({_seeds(everyone)} a point)")
    _name_lines(figure, bottom, 40)
    return figure


def _name_lines(figure: Figure, axes: Axes, width: int, title: str = "") -> None:
    """Add a legend above the figure if there are several lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        legend = figure.legend(handles, [fill(label, width) for label in labels], loc="outside upper left", title=title)
        legend.get_title().set_fontsize(7)


def perplexities(found: Findings) -> Figure:
    """Draw base against teacher perplexity of all scored responses.

    The paper's rule keeps what lies right of the dashed line.
    """

    def draw(axes: Axes, arm: Arm) -> None:
        looks: dict[bool, Any] = {False: {"facecolors": "white", "edgecolors": MIDDLE}, True: {"color": "black"}}
        for kept, look in looks.items():
            of_side = {(e.base_ppl, e.teacher_ppl) for e, is_kept in arm.scored if is_kept == kept}
            pairs = [pair for pair in sorted(of_side) if np.isfinite(pair).all()]
            if pairs:
                base, teacher = zip(*pairs, strict=True)
                size = float(np.clip(2000 / len(pairs), 0.5, 5))  # so that many stay points
                axes.scatter(base, teacher, s=size, linewidths=min(0.4, size / 5), alpha=0.7, rasterized=True, **look)
        axes.set(xscale="log", yscale="log")
        high = max(axes.get_ylim()[1], 2.2)
        surprise = np.geomspace(1, high)
        axes.plot(surprise, surprise, color=LIGHT, zorder=0)
        if (border := _border(arm)) is not None:
            axes.plot(surprise + border, surprise, "--", color=MIDDLE, zorder=0)
        axes.set_ylim(0.95, high)
        _set_ticks(axes.xaxis, LogLocator())
        _set_ticks(axes.yaxis, LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 else (1.0,)))

    handles = [
        _mark("kept", "o", markersize=3),
        _mark("dropped", "o", MIDDLE, markersize=3, markerfacecolor="white"),
        Line2D([], [], color=LIGHT, label="no gap"),
        Line2D([], [], color=MIDDLE, linestyle="--", label="threshold"),
    ]
    return _panels(found, draw, "base, perplexity of the response", "teacher, perplexity", handles)


def gaps(found: Findings) -> Figure:
    """Draw a histogram of the gaps: dropped in white, kept in grey below them."""

    def draw(axes: Axes, arm: Arm) -> None:
        finite = [(e.gap, is_kept) for e, is_kept in arm.scored if np.isfinite(e.gap)]
        kept, dropped = ([gap for gap, is_kept in finite if is_kept == side] for side in (True, False))
        everything = np.arcsinh([*kept, *dropped])  # gaps go over many powers of ten, and below 0
        edges = np.sinh(np.linspace(everything.min() - 0.05, everything.max() + 0.05, 31))
        axes.hist([kept, dropped], list(edges), stacked=True, color=[MIDDLE, "white"], edgecolor="black", linewidth=0.4)
        axes.set_xscale("asinh")
        powers = [sign * 10**power for power in range(9) for sign in (-1, 1)]
        ticks = [0, *(power for power in powers if edges[0] <= power <= edges[-1])]
        _set_ticks(axes.xaxis, FixedLocator(ticks))
        if (border := _border(arm)) is not None:
            axes.axvline(border, color="black", linestyle="--")

    handles = [
        Patch(facecolor=MIDDLE, edgecolor="black", linewidth=0.4, label="kept"),
        Patch(facecolor="white", edgecolor="black", linewidth=0.4, label="dropped"),
        Line2D([], [], color="black", linestyle="--", label="threshold"),
    ]
    return _panels(found, draw, "gap, base − teacher perplexity", "responses", handles)


def cost(found: Findings) -> Figure:
    """Draw accuracy after each iteration against the cost until then.

    Both are an arm's means over its seeds.
    """
    able = sorted(_evaluated(found), key=lambda arm: -arm.metrics[ACCURACY].mean)
    shown = able[:MAX_LINES]
    units = {"generated_tokens": "tokens generated", "trained_tokens": "tokens trained on", "seconds": "seconds"}
    figure = Figure(figsize=(WIDTH, 4.4 + 0.14 * len(shown)))
    panels = figure.subplots(3, 1, sharey=True)
    for axes, (name, unit) in zip(panels, units.items(), strict=True):
        for arm, look in zip(shown, LOOKS, strict=False):
            paid, accuracy = _trajectory(arm, name)
            axes.plot(paid, accuracy, f"k{look}", markerfacecolor="white", label=arm.arm.label)
        _voices(axes, shown, named=axes is panels[0])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel=unit, xlim=(0, None), ylim=(-4, 104))
    figure.supylabel(f"accuracy, points ({found.study.num_questions} questions, {_seeds(shown)})", fontsize=8)
    title = "" if len(able) == len(shown) else f"the {len(shown)} best of {len(able)} arms"
    _name_lines(figure, panels[0], 44, title)
    return figure


def _panels(
    found: Findings, draw: Callable[[Axes, Arm], None], xlabel: str, ylabel: str, handles: Sequence[Any]
) -> Figure:
    """Draw a panel for each arm; arms with the same responses share one."""
    every: list[Arm] = []
    for arm in found.study.arms:
        if (drawn := _drawn(arm))[1] and all(drawn != _drawn(other) for other in every):
            every.append(arm)
    shown = every[:MAX_PANELS]
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + (2.2 if columns == 1 else 1.35) * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for arm, axes in zip(shown, grid.flat, strict=False):
        draw(axes, arm)
        kept = sum(is_kept for _, is_kept in arm.scored)
        label = "" if len(every) == 1 else fill(_part(arm, every), 24) + "\n"
        runs = f"{len(arm.runs)} run{'s' * (len(arm.runs) != 1)}"
        axes.set_title(f"{label}{kept} of {len(arm.scored)} kept, {runs}", fontsize=7)
    for place, axes in enumerate(grid.flat[len(shown) :], len(shown)):
        axes.set_visible(False)
        grid.flat[place - columns].tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    title = None if len(every) == len(shown) else f"the first {len(shown)} of {len(every)} ways of selecting"
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1, handletextpad=0.4, title=title)
    return figure


def _drawn(arm: Arm) -> tuple[float | None, list[tuple[float, float, bool]]]:
    """Return all that a panel shows."""
    return _border(arm), sorted((e.base_nll, e.teacher_nll, kept) for e, kept in arm.scored)


def _part(arm: Arm, others: Sequence[Arm]) -> str:
    """Return the parts of the label that not all the others have."""
    parts = arm.label.split(", ")
    return ", ".join(part for part in parts if not all(part in other.label.split(", ") for other in others))


def _border(arm: Arm) -> float | None:
    return arm.threshold if arm.settings.get("selection._target_") == PAPERS_RULE else None


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:g}"


def _mark(label: str, marker: str, color: str = "black", linestyle: Any = "", **look: Any) -> Line2D:
    """Make an entry of a legend."""
    return Line2D([], [], marker=marker, color=color, linestyle=linestyle, label=label, **look)


def _set_ticks(axis: Any, locator: Locator) -> None:
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def _evaluated(found: Findings) -> list[ArmFindings]:
    return [arm for arm in found.arms if ACCURACY in arm.metrics]


def _lines(found: Findings) -> dict[str, list[tuple[float, ArmFindings]]]:
    """Group arms by all but the threshold: the first groups with several thresholds."""
    lines: dict[str, list[tuple[float, ArmFindings]]] = {}
    for arm in found.arms:
        if arm.arm.threshold is not None:
            others = [part for part in arm.arm.label.split(", ") if not part.startswith("threshold=")]
            lines.setdefault(", ".join(others), []).append((arm.arm.threshold, arm))
    swept = {label: line for label, line in lines.items() if len({place for place, _ in line}) > 1}
    return {label: sorted(line, key=itemgetter(0)) for label, line in islice(swept.items(), MAX_LINES)}


def _bars(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Return the distances to the intervals' ends, NaN for estimates without one."""
    ends = [(estimate.mean, *(estimate.interval or (np.nan, np.nan))) for estimate in estimates]
    return [[mean - low for mean, low, _ in ends], [high - mean for mean, _, high in ends]]


def _voices(axes: Axes, shown: Sequence[ArmFindings], named: bool = True) -> None:
    """Draw a line for each accuracy of teachers and untouched targets.

    The highest of each is named.
    """
    for name, label, dashes in (("teacher", "teacher", (6, 2)), ("target", "before", (1, 2))):
        estimates = [arm.metrics.get(f"eval/{name}_accuracy") for arm in shown]
        values = {round(estimate.mean, 6) for estimate in estimates if estimate}
        for value in values:
            axes.axhline(100 * value, color=MIDDLE, linewidth=0.8, dashes=dashes, zorder=0)
        if values and named:
            look: Any = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 6.5, "color": MIDDLE}
            axes.annotate(label, (1.01, 100 * max(values)), **look)


def _trajectory(arm: ArmFindings, cost: str) -> tuple[list[float], list[float]]:
    """Return cost and accuracy (points) after each iteration that all seeds have.

    Both are means over the seeds.
    """
    paid, reached = [], []
    for index in range(min(len(run.rows) for run in arm.arm.runs)):
        accuracies = [run.rows[index].get(ACCURACY) for run in arm.arm.runs]
        if None not in accuracies:
            sums = [sum(spent(row, cost) for row in run.rows[: index + 1]) for run in arm.arm.runs]
            paid.append(float(np.mean(sums)))
            reached.append(100 * float(np.mean(np.array(accuracies, dtype=float))))
    return paid, reached


def _seeds(shown: Sequence[ArmFindings]) -> str:
    counts = sorted({len(arm.arm.runs) for arm in shown})
    return f"{' or '.join(map(str, counts))} seed" + "s" * (counts != [1])
