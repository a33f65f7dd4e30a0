"""What each tenant has used, by model and day: counted in memory, kept in `usage.json`.

Servers that share a state directory share the file: each adds to it what it has counted since it last did, under a lock
on the folder. What a server counted in the last SAVE_SECONDS is lost if it is killed. Days are UTC.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from headrace_models.store.files import replace_file
from headrace_server.domain import ModelId, TenantId
from headrace_server.tenancy.state_files import locked, private_directory

logger = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
MAX_DAYS = 400
# Tenants may come from tokens: beyond so many counts, what is new is counted for OTHERS.
MAX_COUNTS = 20_000
OTHERS = TenantId("(others)")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests that ended and their tokens. Prompt tokens were either computed or at hand (cached)."""

    num_requests: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_requests + other.num_requests,
            self.num_computed_tokens + other.num_computed_tokens,
            self.num_cached_tokens + other.num_cached_tokens,
            self.num_output_tokens + other.num_output_tokens,
        )


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """What usage is counted by."""

    day: date
    tenant: TenantId
    model: ModelId


Counts: TypeAlias = Mapping[UsageKey, Usage]


def today() -> date:
    """The day, UTC."""
    return datetime.now(UTC).date()


class Ledger:
    """See the module.

    Args:
        path: where it is kept; None: nowhere.
        day: which day it is.
    """

    def __init__(self, path: Path | None = None, *, day: Callable[[], date] = today) -> None:
        self._path = path
        self._day = day
        self._saved: dict[UsageKey, Usage] = {}
        self._new: dict[UsageKey, Usage] = {}
        self._can_save = True

    def add(
        self,
        tenant: TenantId,
        model: ModelId,
        num_computed_tokens: int,
        num_cached_tokens: int,
        num_output_tokens: int,
    ) -> None:
        """A request has ended."""
        key = UsageKey(self._day(), tenant, model)
        if key not in self._new and len(self._new) >= MAX_COUNTS:
            key = UsageKey(key.day, OTHERS, model)
        used = Usage(1, num_computed_tokens, num_cached_tokens, num_output_tokens)
        self._new[key] = self._new.get(key, Usage()) + used

    def counts(self, num_days: int | None = None) -> dict[UsageKey, Usage]:
        """Usage of the last days, today among them, in order; None: of all that are kept."""
        since = self._first_day(MAX_DAYS if num_days is None else num_days)
        found = merged(self._saved, self._new)
        return {key: found[key] for key in sorted(found) if key.day >= since}

    async def run(self) -> None:
        """Read what is kept, and save until cancelled; then once more."""
        if self._path is None:
            return
        try:
            while True:
                await self._save(self._path)
                await asyncio.sleep(SAVE_SECONDS)
        finally:
            new = dict(self._new)
            self._settle(self._try(self._path, new), new)

    async def _save(self, path: Path) -> None:
        new = dict(self._new)
        work = asyncio.ensure_future(asyncio.to_thread(self._try, path, new))
        try:
            await asyncio.shield(work)
        finally:  # the thread goes on all the same, and what it writes must not be written again
            self._settle(await work, new)

    def _settle(self, saved: dict[UsageKey, Usage] | None, new: Counts) -> None:
        """`new` is among what is saved; with None it is not, and remains to be."""
        if saved is not None:
            self._saved = saved
            self._new = without(self._new, new)

    def _try(self, path: Path, new: Counts) -> dict[UsageKey, Usage] | None:
        """Add to the file; what it holds then, or None: it could not be done, which is said once."""
        try:
            saved = add_to_file(path, new, since=self._first_day(MAX_DAYS))
        except OSError as error:
            if self._can_save:
                logger.warning("usage_not_saved", extra={"path": str(path), "detail": error.strerror or str(error)})
            self._can_save = False
            return None
        self._can_save = True
        return saved

    def _first_day(self, num_days: int) -> date:
        return self._day() - timedelta(days=num_days - 1)


def merged(first: Counts, second: Counts) -> dict[UsageKey, Usage]:
    """The sums."""
    sums = dict(first)
    for key, used in second.items():
        sums[key] = sums.get(key, Usage()) + used
    return sums


def without(counts: Counts, part: Counts) -> dict[UsageKey, Usage]:
    """What is left after `part`, which is in it, has been taken away."""
    rest = {key: used + _negative(part[key]) if key in part else used for key, used in counts.items()}
    return {key: used for key, used in rest.items() if used.num_requests}


def _negative(used: Usage) -> Usage:
    return Usage(-used.num_requests, -used.num_computed_tokens, -used.num_cached_tokens, -used.num_output_tokens)


def add_to_file(path: Path, new: Counts, *, since: date) -> dict[UsageKey, Usage]:
    """Add to a file, without days before `since`; what it holds then. With nothing to add, nothing is written.

    A file that is no ledger is kept under another name.

    Raises:
        OSError: it cannot be read or written.
    """
    if not new and not path.exists():
        return {}
    private_directory(path.parent)
    with locked(path.parent):
        counts = merged(_read(path), new)
        if new:
            counts = {key: used for key, used in counts.items() if key.day >= since}
            replace_file(path, _written(counts))
    return counts


def _read(path: Path) -> dict[UsageKey, Usage]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return _parsed(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        aside = path.with_name(path.name + ".damaged")
        path.rename(aside)
        logger.error("usage_file_damaged", extra={"path": str(path), "detail": f"kept as {aside.name}"})
        return {}


def _parsed(content: bytes) -> dict[UsageKey, Usage]:
    document = json.loads(content)
    if document["version"] != _VERSION:
        raise ValueError("unknown version")
    return {
        UsageKey(date.fromisoformat(day), TenantId(str(tenant)), ModelId(str(model))): Usage(*map(int, counts))
        for day, tenant, model, *counts in document["counts"]
    }


def _written(counts: Counts) -> bytes:
    """A line for each count: day, tenant, model, requests, computed, cached and output tokens."""
    rows = [[key.day.isoformat(), key.tenant, key.model, *_numbers(counts[key])] for key in sorted(counts)]
    lines = ",\n".join(map(json.dumps, rows))
    return f'{{"version": {_VERSION}, "counts": [\n{lines}\n]}}\n'.encode()


def _numbers(used: Usage) -> tuple[int, int, int, int]:
    return used.num_requests, used.num_computed_tokens, used.num_cached_tokens, used.num_output_tokens
