"""Draws a comparison: ratios with their confidence intervals, and distributions of latencies. Needs matplotlib.

It is imported when something is drawn, and looked for before anything is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from math import log
from pathlib import Path
from typing import Any

from headrace_server.bench.measures import Better
from headrace_server.bench.stats import Estimate, Sense, Target
from headrace_server.errors import UsageError

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours: told apart by people who do not see red and green.
_SIDE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_BETTER, _WORSE, _EVEN, _TARGET = "#009E73", "#D55E00", "#777777", "#000000"
_NOTICEABLE = 0.01
_INCHES_PER_ROW = 0.32
_LEAST_HEIGHT = 4.2
_TICKS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10)
_LEAST_TICK_DISTANCE = 0.09


@dataclass(frozen=True, slots=True)
class Bar:
    """One ratio; those of a group follow one another, below its name."""

    label: str
    ratio: Estimate
    better: Better
    target: Target | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One latency: 101 quantiles in seconds for each side."""

    title: str
    sides: Mapping[str, Sequence[float]]


def check_can_draw(path: Path) -> None:
    """Raise UsageError where a picture could not be drawn into this file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--picture: {path.name} ends neither in .png nor in .svg")
    if find_spec("matplotlib") is None:
        raise UsageError("--picture needs matplotlib: pip install 'headrace[loadtest]'")


def draw(path: Path, *, title: str, bars: Sequence[Bar], distributions: Sequence[Distribution]) -> None:
    """Ratios on the left, where there are any; distributions on the right, one below the other.

    The ratios' axis is logarithmic: one that reaches 0 is left out.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [bar for bar in bars if _ends(bar.ratio)[0] > 0]
    num_rows = len(bars) + len({bar.group for bar in bars})
    height = max(_LEAST_HEIGHT, 1.4 + _INCHES_PER_ROW * num_rows, 2.3 * len(distributions))
    figure = Figure(figsize=(11.5 if bars and distributions else 7, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    left, right = _parts(figure, both=bool(bars and distributions))
    if bars:
        _draw_ratios(left.subplots(), bars)
    if distributions:
        _draw_distributions(right, distributions)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _parts(figure: Any, *, both: bool) -> tuple[Any, Any]:
    """Where to draw the two kinds; a single kind gets everything."""
    if not both:
        return figure, figure
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    return left, right


def _draw_ratios(axes: Any, bars: Sequence[Bar]) -> None:
    axes.axvline(1.0, color=_EVEN, linewidth=1, zorder=1)
    labels: list[str] = []
    for group, members in groupby(bars, key=lambda bar: bar.group):
        if group:
            axes.axhline(len(labels) - 0.5, color="#cccccc", linewidth=0.7)
            labels.append(group)
        for bar in members:
            _draw_bar(axes, len(labels), bar)
            labels.append(f"{bar.label}  {_arrow(bar.better)}")
    axes.set_yticks(range(len(labels)), labels)
    _embolden(axes.get_yticklabels(), {bar.group for bar in bars})
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("median of the paired ratios, 95 % confidence interval", fontsize=10, loc="left")
    _scale(axes, bars)
    _explain(axes, any(bar.target for bar in bars))


def _embolden(labels: Sequence[Any], headings: set[str]) -> None:
    for label in labels:
        if label.get_text() in headings:
            label.set_fontweight("bold")


def _arrow(better: Better) -> str:
    return "↑" if better is Better.HIGHER else "↓"


def _draw_bar(axes: Any, place: int, bar: Bar) -> None:
    colour = _verdict_colour(bar)
    low, high = _ends(bar.ratio)
    axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=3)
    for end in (low, high):
        axes.plot([end, end], [place - 0.16, place + 0.16], color=colour, linewidth=2, zorder=3)
    axes.plot([bar.ratio.value], [place], "o", color=colour, markersize=6, zorder=4)
    axes.annotate(
        f"{bar.ratio.value:.2f}",
        (1.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=9,
        color=colour,
        annotation_clip=False,
    )
    if bar.target is not None:
        _draw_target(axes, place, bar.target)


def _draw_target(axes: Any, place: int, target: Target) -> None:
    marker = ">" if target.sense is Sense.AT_LEAST else "<"
    axes.plot([target.value] * 2, [place - 0.34, place + 0.34], color=_TARGET, linewidth=1.2, zorder=2)
    axes.plot([target.value], [place - 0.34], marker, color=_TARGET, markersize=4.5, zorder=2)


def _verdict_colour(bar: Bar) -> str:
    """Whether the target is met; without one, better or worse only where the whole interval is on one side of 1."""
    if bar.target is not None:
        return _BETTER if bar.target.met_by(bar.ratio) else _WORSE
    low, high = _ends(bar.ratio)
    if low <= 1.0 <= high or abs(bar.ratio.value - 1.0) < _NOTICEABLE:
        return _EVEN
    return _BETTER if (low > 1.0) == (bar.better is Better.HIGHER) else _WORSE


def _ends(ratio: Estimate) -> tuple[float, float]:
    return (ratio.confidence.low, ratio.confidence.high) if ratio.confidence else (ratio.value, ratio.value)


def _scale(axes: Any, bars: Sequence[Bar]) -> None:
    """A logarithmic axis around everything drawn, with ticks that people read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shown = [1.0, *(end for bar in bars for end in _ends(bar.ratio)), *(b.target.value for b in bars if b.target)]
    low, high = min(0.9, min(shown) * 0.94), max(1.1, max(shown) * 1.06)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_readable_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _readable_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, from 1 outwards, not so close that their labels touch."""
    least = (log(high) - log(low)) * _LEAST_TICK_DISTANCE
    chosen = [1.0]
    for tick in sorted(_TICKS, key=lambda tick: abs(log(tick))):
        if low <= tick <= high and all(abs(log(tick / other)) >= least for other in chosen):
            chosen.append(tick)
    return chosen


def _explain(axes: Any, with_targets: bool) -> None:
    lines = ["↑ more is better, ↓ less is better", "green: better, orange: worse, grey: as good"]
    if with_targets:
        lines.append("black line: target (green: met, orange: missed)")
    axes.set_xlabel("\n".join(lines), fontsize=8, color="#555555", loc="left")


def _draw_distributions(part: Any, distributions: Sequence[Distribution]) -> None:
    rows = part.subplots(len(distributions), 1, squeeze=False)
    for axes, distribution in zip(rows[:, 0], distributions, strict=True):
        _draw_distribution(axes, distribution)
    if len(distributions[0].sides) > 1:
        handles, labels = rows[-1, 0].get_legend_handles_labels()
        part.legend(handles, labels, fontsize=9, frameon=False, loc="outside upper right", ncols=len(labels))


def _draw_distribution(axes: Any, distribution: Distribution) -> None:
    """The share of samples below each latency; the axis ends a little after the 99th percentile of every side."""
    shares = range(101)
    for colour, (side, values) in zip(_SIDE_COLOURS, distribution.sides.items(), strict=False):
        axes.plot([value * 1e3 for value in values], shares, color=colour, linewidth=1.8, label=side)
        axes.plot([values[50] * 1e3, values[99] * 1e3], [50, 99], "o", color=colour, markersize=4)
    most = max(values[99] for values in distribution.sides.values()) * 1e3 or 1.0
    axes.set_xlim(0, most * 1.08)
    axes.set_ylim(0, 102)
    axes.set_yticks((0, 50, 99), ("0 %", "50 %", "99 %"))
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{distribution.title} (ms)", fontsize=10, loc="left")
    axes.set_ylabel("share of samples below", fontsize=8, color="#555555")
