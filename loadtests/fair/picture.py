"""A picture of the flood on vLLM: when the light tenant's requests came, and how long each waited for its first text.
Needs matplotlib."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadtests.fair.findings import Findings
from loadtests.fair.real import OURS, THEIRS, UNBOUNDED, Times

_COLOURS = {OURS: "#0072B2", THEIRS: "#D55E00", UNBOUNDED: "#999999"}
_TITLES = {OURS: "Headrace", THEIRS: "vLLM with its best bound", UNBOUNDED: "vLLM"}
_FLOOD = "#f3e3d3"


def can_draw(findings: Findings) -> bool:
    """Whether there is anything to draw, and something to draw it with."""
    return find_spec("matplotlib") is not None and bool(_of(findings.samples, OURS, "ttft"))


def draw(findings: Findings, times: Times, path: Path) -> None:
    """Write the picture. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvspan(
        times.flood_begin, times.flood_end, color=_FLOOD, zorder=0, label="another tenant asks 16 times as much"
    )
    for side in _COLOURS:
        _draw(axes, findings.samples, side)
    axes.set_yscale("log")
    axes.set_xlabel("s")
    axes.set_ylabel("TTFT of the light tenant (s)")
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=130)


def _draw(axes: Any, samples: Mapping[str, Sequence[float]], side: str) -> None:
    due, seconds, refused = (_of(samples, side, what) for what in ("due", "ttft", "refused_due"))
    if not due:
        return
    axes.plot(due, seconds, "o-", color=_COLOURS[side], markersize=3.5, linewidth=1, label=_TITLES[side])
    if refused:
        level = [max(seconds)] * len(refused)
        axes.plot(refused, level, "x", color=_COLOURS[side], markersize=6, label=f"{_TITLES[side]}: refused")


def _of(samples: Mapping[str, Sequence[float]], side: str, what: str) -> Sequence[float]:
    return samples.get(f"{side}: {what}_seconds", ())
