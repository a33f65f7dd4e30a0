"""What rows of measurements found, as a table and as a document: one line a figure, under the row it belongs to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rich.table import Table

from headrace_server.bench import document
from headrace_server.bench.report import empty_table, open_console
from headrace_server.bench.stats import Estimate, Target

_LEAST_WIDTH_OF_FILES = 120


class FoundLine(Protocol):
    """One line of the table."""

    @property
    def title(self) -> str: ...

    @property
    def found(self) -> Estimate: ...

    @property
    def target(self) -> Target | None: ...

    @property
    def met(self) -> bool | None: ...


L = TypeVar("L", bound=FoundLine)
L_co = TypeVar("L_co", bound=FoundLine, covariant=True)


class RowFindings(Protocol[L_co]):
    """What one row found."""

    @property
    def lines(self) -> Sequence[L_co]: ...

    @property
    def remarks(self) -> Iterable[str]: ...

    def as_document(self) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True)
class RowReport(Generic[L]):
    """How a command shows its findings.

    Attributes:
        command: `bench-swap`; names the files, too.
        subject: what is measured.
        columns: beside the title of a line; `cells` fills them.
    """

    command: str
    subject: str
    caption: str
    columns: tuple[str, ...]
    cells: Callable[[L], Iterable[str]]

    def table(self, found: Mapping[str, RowFindings[L]]) -> Table:
        """All rows."""
        shown = empty_table(self.subject, self.caption, self.columns)
        shown.columns[0].header = ""
        for name, findings in found.items():
            shown.add_row(f"[bold]{name}[/]")
            for line in findings.lines:
                shown.add_row(f" {line.title}", *self.cells(line))
        return shown

    def show(self, found: Mapping[str, RowFindings[L]]) -> None:
        """Print the table, and what else one must know."""
        console = open_console()
        if not console.is_terminal:
            console.width = max(console.width, _LEAST_WIDTH_OF_FILES)
        if found:
            console.print(self.table(found))
        for remark in self.remarks(found):
            console.print(remark, soft_wrap=True, markup=False)

    def remarks(self, found: Mapping[str, RowFindings[L]]) -> Iterator[str]:
        """What else one must know, by row."""
        for name, findings in found.items():
            for remark in findings.remarks:
                yield f"{name}: {remark}"

    def content(
        self,
        found: Mapping[str, RowFindings[L]],
        options: Mapping[str, object],
        *,
        began: datetime,
        measured_on: Mapping[str, object],
    ) -> dict[str, object]:
        """Everything, for JSON."""
        return {
            **document.heading(f"make {self.command}", began=began, measured_on=measured_on),
            **options,
            "rows": {name: findings.as_document() for name, findings in found.items()},
        }

    def path_in(self, folder: Path) -> Path:
        """Where the document of this run goes; a picture lies beside it."""
        return folder / f"{self.command}-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"


def span(found: Estimate, shown: Callable[[float], str]) -> str:
    """The range of several values; empty where there is one."""
    return "" if found.num_pairs == 1 else f"{shown(found.range.low)}–{shown(found.range.high)}"


def verdict(line: FoundLine, shown: Callable[[float], str]) -> str:
    """A line's target, and whether it is met; empty where there is none."""
    if line.target is None:
        return ""
    colour, word = ("green", "met") if line.met else ("red", "missed")
    return f"[{colour}]{line.target.sense} {shown(line.target.value)} {word}[/]"
