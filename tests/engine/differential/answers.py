"""What either side answers, before anybody has judged it."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Document:
    """A unary answer, decoded."""

    data: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Frames:
    """A stream that ended by itself: its items, each of whole server-sent events."""

    items: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in place of an answer, before or after a stream began. `status` is its HTTP status."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Defect:
    """An exception that is nobody's answer."""

    exception: str


Answer: TypeAlias = Document | Frames | Refusal | Defect
