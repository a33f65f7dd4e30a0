"""What was measured, for a terminal of 80 columns: one line a measure, and below it what else one must know."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from headrace_server.bench.measures import Measure
from headrace_server.bench.priority import has_priority
from headrace_server.bench.record import Record
from headrace_server.bench.stats import Estimate, Interval, median
from headrace_server.bench.summary import BUSY_CORE_SHARE, LATE_SECONDS, Tally

_MOST_REASONS = 3
_LEAST_WIDTH_OF_FILES = 100


def open_console() -> Console:
    """Standard output; a file or a pipe gets lines long enough for any figures."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH_OF_FILES)
    return console


def empty_table(title: str, caption: str, columns: Sequence[str]) -> Table:
    """A table without lines around it: a first column of names, the others of numbers."""
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False
    )
    table.add_column("median of", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def table_of_one(record: Record, side: str, title: str) -> Table:
    """Medians over the blocks, and their range."""
    table = empty_table(title, "range: from the lowest block to the highest", (side, "range", "blocks"))
    for measure in record.samples.measures():
        if values := record.samples.of(measure, side):
            blocks = _interval(Interval(min(values), max(values)), measure)
            table.add_row(measure.heading, measure.shown(median(values)), blocks, str(len(values)))
    return table


def table_of_two(record: Record, ours: str, theirs: str, *, title: str, seed: int) -> Table:
    """Medians of both sides and the median of the paired ratios, with its confidence interval."""
    caption = f"ratio: {ours} / {theirs}, median of the pairs of blocks, with its 95 % confidence interval"
    table = empty_table(title, caption, (ours, theirs, "ratio", "95 % CI", "pairs"))
    ratios = record.samples.ratios(ours, theirs, seed=seed)
    for measure in record.samples.measures():
        values = [record.samples.of(measure, side) for side in (ours, theirs)]
        medians = [measure.shown(median(part)) if part else "" for part in values]
        table.add_row(measure.heading, *medians, *(_ratio_cells(ratios[measure]) if measure in ratios else ()))
    return table


def _ratio_cells(ratio: Estimate) -> tuple[str, str, str]:
    return (f"{ratio.value:.3f}", confidence_text(ratio), str(ratio.num_pairs))


def confidence_text(estimate: Estimate) -> str:
    """`0.98–1.03`; nothing for a single pair."""
    if estimate.confidence is None:
        return ""
    return f"{estimate.confidence.low:.2f}–{estimate.confidence.high:.2f}"


def _interval(interval: Interval, measure: Measure) -> str:
    return f"{measure.shown(interval.low)}–{measure.shown(interval.high)}"


def notes(record: Record) -> Iterator[str]:
    """A line for each side's requests that were not answered, and one about this client."""
    for side, tally in record.tallies.items():
        if tally.num_complete < tally.num_sent:
            yield f"{side}: {account(tally)}"
            for reason, count in tally.reasons.most_common(_MOST_REASONS):
                yield f"  {count} × {reason}"
    if record.client_cpu_seconds_per_token is not None:
        yield _client_note(record)


def account(tally: Tally) -> str:
    """What became of every request."""
    refused = ", ".join(f"{count} × {status}" for status, count in sorted(tally.refused.items()))
    told = f"{tally.num_sent} sent = {tally.num_complete} complete + {tally.refused.total()} refused"
    return f"{told}{f' ({refused})' if refused else ''} + {tally.num_failed} failed"


def _client_note(record: Record) -> str:
    cost = (record.client_cpu_seconds_per_token or 0.0) * 1e6
    place = "real-time" if has_priority() else "ordinary, so it may wait for the servers it measures"
    note = f"this client: {cost:.1f} µs CPU/token, at most {record.client_core_share:.0%} of a core; priority: {place}"
    if not record.is_generator_bound:
        return note
    limits = f"over {BUSY_CORE_SHARE:.0%} of its core, or p99 lateness over {LATE_SECONDS * 1e3:.0f} ms"
    return f"{note}: GENERATOR-BOUND ({limits}; {record.late_p99_seconds * 1e3:.1f} ms late)"
