"""The ledger: nothing is lost, nothing is counted twice, whoever else writes into the file."""

import asyncio
import logging
import threading
from datetime import date, timedelta
from pathlib import Path

import pytest

from headrace_server.domain import ModelId, TenantId
from headrace_server.tenancy import usage
from headrace_server.tenancy.usage import MAX_DAYS, OTHERS, Ledger, Usage, UsageKey, add_to_file

A, B, M = TenantId("a"), TenantId("b"), ModelId("m")
TODAY = date(2026, 3, 1)
KEY = UsageKey(TODAY, A, M)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "usage.json"


def ledger(path: Path | None = None, day: date = TODAY) -> Ledger:
    return Ledger(path, day=lambda: day)


def run_once(ledger: Ledger) -> None:
    """From start to end, as a server does."""

    async def run() -> None:
        task = asyncio.create_task(ledger.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_requests_are_summed_by_tenant_model_and_day() -> None:
    book = ledger()
    book.add(A, M, 10, 2, 3)
    book.add(A, M, 1, 0, 1)
    book.add(B, M, 5, 5, 5)
    assert book.counts() == {KEY: Usage(2, 11, 2, 4), UsageKey(TODAY, B, M): Usage(1, 5, 5, 5)}


def test_days_are_shown_in_order_and_as_many_as_asked_for() -> None:
    now = TODAY
    book = Ledger(day=lambda: now)
    for back in (3, 0, 1):
        now = TODAY - timedelta(days=back)
        book.add(A, M, 1, 0, 0)
    now = TODAY
    assert [key.day for key in book.counts()] == [TODAY - timedelta(days=back) for back in (3, 1, 0)]
    assert [key.day for key in book.counts(2)] == [TODAY - timedelta(days=1), TODAY]
    assert [key.day for key in book.counts(1)] == [TODAY]


def test_what_was_counted_is_there_after_a_restart(path: Path) -> None:
    first = ledger(path)
    first.add(A, M, 10, 2, 3)
    run_once(first)
    second = ledger(path)
    second.add(A, M, 1, 1, 1)
    run_once(second)
    assert second.counts() == {KEY: Usage(2, 11, 3, 4)}
    third = ledger(path)
    run_once(third)
    assert third.counts() == second.counts()
    assert path.stat().st_mode & 0o777 == 0o600


def test_servers_that_share_the_file_add_up(path: Path) -> None:
    books = [ledger(path) for _ in range(3)]
    for book in books:
        book.add(A, M, 1, 0, 0)
        run_once(book)
        book.add(A, M, 1, 0, 0)
    for book in books:
        run_once(book)
    assert books[-1].counts() == {KEY: Usage(6, 6, 0, 0)}


async def test_what_comes_while_it_saves_is_saved_later_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, writes = threading.Event(), threading.Event()

    def slow(*args: object, **kwargs: object) -> object:
        writes.set()
        assert may_write.wait(10)
        return add_to_file(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(usage, "add_to_file", slow)
    book = ledger(path)
    book.add(A, M, 1, 0, 0)
    task = asyncio.create_task(book.run())
    assert await asyncio.to_thread(writes.wait, 10)
    book.add(A, M, 5, 0, 0)
    assert book.counts() == {KEY: Usage(2, 6, 0, 0)}
    task.cancel()  # in the middle of the save
    may_write.set()
    await asyncio.gather(task, return_exceptions=True)
    assert book.counts() == {KEY: Usage(2, 6, 0, 0)}
    assert add_to_file(path, {}, since=TODAY) == book.counts()


def test_a_server_that_nobody_used_writes_nothing(path: Path) -> None:
    run_once(ledger(path))
    assert not path.parent.exists()


def test_a_file_that_cannot_be_written_is_said_once_and_loses_nothing_meanwhile(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.write_text("in the way")
    book = ledger(path)
    book.add(A, M, 1, 2, 3)
    with caplog.at_level(logging.WARNING):
        run_once(book)
        run_once(book)
    assert [record.message for record in caplog.records] == ["usage_not_saved"]
    path.parent.unlink()
    run_once(book)
    assert add_to_file(path, {}, since=TODAY) == {KEY: Usage(1, 1, 2, 3)} == book.counts()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2, "counts": []}', b'{"version": 1, "counts": [[1]]}', b"\xff"]
)
def test_a_damaged_file_is_kept_and_a_new_one_begun(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    book = ledger(path)
    book.add(A, M, 1, 2, 3)
    run_once(book)
    assert path.with_name("usage.json.damaged").read_bytes() == content
    assert add_to_file(path, {}, since=TODAY) == {KEY: Usage(1, 1, 2, 3)}


def test_days_that_are_too_old_are_dropped_when_something_is_added(path: Path) -> None:
    old = UsageKey(TODAY - timedelta(days=MAX_DAYS), A, M)
    kept = UsageKey(old.day + timedelta(days=1), A, M)
    add_to_file(path, {old: Usage(1), kept: Usage(2)}, since=date.min)
    first_day = TODAY - timedelta(days=MAX_DAYS - 1)
    assert add_to_file(path, {KEY: Usage(3)}, since=first_day) == {kept: Usage(2), KEY: Usage(3)}


def test_tenants_without_number_do_not_take_memory_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_COUNTS", 2)
    book = ledger()
    for name in ("a", "b", "c", "d", "a"):
        book.add(TenantId(name), M, 1, 0, 0)
    found = {key.tenant: used.num_requests for key, used in book.counts().items()}
    assert found == {A: 2, B: 1, OTHERS: 2}


async def test_a_ledger_without_a_file_only_counts() -> None:
    book = ledger()
    book.add(A, M, 1, 0, 0)
    await book.run()
    assert book.counts()
