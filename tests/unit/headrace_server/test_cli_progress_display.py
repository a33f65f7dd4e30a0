"""What a long job tells a terminal and a log."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from headrace_server.cli.progress_display import (
    LINE_SECONDS,
    BarDisplay,
    LineDisplay,
    duration_text,
    figures,
    percent,
    size_text,
)


class Clock:
    """Seconds that the test sets."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_few_seconds_and_every_note() -> None:
    clock, lines = Clock(), list[str]()
    with LineDisplay("hf://o/m", clock=clock, echo=lines.append) as display:
        for tick in range(1, 9):  # 8 s
            clock.now += 1.0
            display.show(tick, 10, rate=1.0, eta_seconds=10.0 - tick)
        display.note("trying again")
    assert LINE_SECONDS == 3.0
    assert lines == [
        "hf://o/m: 30 %, 3 B of 10 B, 1 B/s, 7.0 s left",
        "hf://o/m: 60 %, 6 B of 10 B, 1 B/s, 4.0 s left",
        "hf://o/m: trying again",
    ]


def test_a_terminal_gets_a_bar_with_the_figures_and_is_left_clean() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with BarDisplay("hf://o/[m]", console) as display:
        display.show(42_000_000, 100_000_000, rate=2e6, eta_seconds=29.0)
        shown = screen.getvalue()
        display.note("trying [again]")
    assert "hf://o/[m]" in shown
    assert "42 %, 42.0 MB of 100.0 MB, 2.0 MB/s, 29 s left" in shown
    assert "hf://o/[m]: trying [again]" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (272_600_000, "272.6 MB"),
    ],
)
def test_sizes_are_short(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text


@given(st.integers(0, 10**15 - 10**12))
def test_every_size_has_three_digits_at_most_before_the_point(num_bytes: int) -> None:
    number, unit = size_text(num_bytes).split(" ")
    assert float(number) < 1000
    assert unit in ("B", "kB", "MB", "GB", "TB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.6, "1 h 0 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.integers(1, 10**15), st.data())
def test_a_hundred_per_cent_is_said_only_when_nothing_is_missing(total: int, data: st.DataObject) -> None:
    done = data.draw(st.integers(0, total))
    assert (percent(done, total) == 100) == (done == total)


def test_what_is_not_known_is_not_said() -> None:
    assert figures(0, 0) == "100 %, 0 B of 0 B"
    assert figures(1, 4) == "25 %, 1 B of 4 B"
