"""Two pictures in one file: how long a cold start takes on each side, and how long a plain fetch. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrace_server.bench.measures import Measure
from headrace_server.bench.stats import median
from loadtests.cache_fetching import OUR_TITLES, PEER_TITLES
from loadtests.cache_findings import SECONDS, Findings
from loadtests.cache_first_token import BOOT, DOWNLOAD, FAST, FIRST_TOKEN, HUB, LOCAL, RUNAI, SLOW

_OURS, _OTHERS, _BOOT = "#0072B2", "#999999", "#D55E00"
_INCHES_PER_BAR = 0.36


@dataclass(frozen=True, slots=True)
class Bar:
    """Seconds of one side, every run of it."""

    title: str
    seconds: Sequence[float]
    is_ours: bool


def can_draw(found: Mapping[str, Findings]) -> bool:
    """Whether there is anything to draw, and something to draw it with."""
    return find_spec("matplotlib") is not None and any(_bars(found).values())


def draw(found: Mapping[str, Findings], path: Path) -> None:
    """Write the picture. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = {title: bars for title, bars in _bars(found).items() if bars}
    height = 1.2 + _INCHES_PER_BAR * max(map(len, parts.values()))
    figure = Figure(figsize=(6.2 * len(parts), height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, bars) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True):
        _draw(axes, title, bars)
        if "first token" in title:
            boots = found["first-token"].samples.of(BOOT, LOCAL)
            axes.axvline(median(boots), color=_BOOT, linewidth=1, linestyle="--", zorder=1)
    figure.savefig(path, dpi=130)


def _bars(found: Mapping[str, Findings]) -> dict[str, list[Bar]]:
    starts = {LOCAL: True, FAST: True, HUB: False, RUNAI: False, DOWNLOAD: False, SLOW: True}
    fetches: dict[str, bool] = {**dict.fromkeys(OUR_TITLES, True), **dict.fromkeys(PEER_TITLES.values(), False)}
    return {
        "process start to first token (s; dashed: engine boot), peers: fast link": _of(
            found, "first-token", FIRST_TOKEN, starts
        ),
        "257 MiB at 50 MiB/s, all tensors read (s)": _of(found, "fetch", SECONDS, fetches),
    }


def _of(found: Mapping[str, Findings], row: str, measure: Measure, sides: Mapping[str, bool]) -> list[Bar]:
    if row not in found:
        return []
    samples = {side: found[row].samples.of(measure, side) for side in sides}
    return [Bar(side, samples[side], sides[side]) for side in sides if samples[side]]


def _draw(axes: Any, title: str, bars: Sequence[Bar]) -> None:
    for place, bar in enumerate(bars):
        middle = median(bar.seconds)
        axes.barh(place, middle, height=0.62, color=_OURS if bar.is_ours else _OTHERS, zorder=2)
        axes.plot([min(bar.seconds), max(bar.seconds)], [place, place], color="black", linewidth=1, zorder=3)
        axes.annotate(
            f"{middle:.1f}", (max(bar.seconds), place), xytext=(4, -3), textcoords="offset points", fontsize=9
        )
    axes.set_yticks(range(len(bars)), [bar.title for bar in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
