"""A disk that is full at one call, whichever: an error that says so, nothing corrupt, and the next try succeeds."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace_models.errors import NoSpace, SourceDenied
from headrace_models.store.model_store import ModelStore
from headrace_models.store.space import allocated_bytes
from headrace_models.trust import Trust
from tests.fakes.stored_models import FakeModel, bytes_on_disk, fake_model, present, published, put, scratch_cache

CALLS = ("pwrite", "write", "posix_fallocate", "rename", "ftruncate", "mkdir", "fsync")
NOBODY = "none-000000000000"


class _FullDisk:
    """Lets `left` calls of one kind through, then one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.left: int | None = None
        call: Callable[..., Any] = getattr(os, name)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    self.left = None
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **named)

        monkeypatch.setattr(os, name, wrapper)


@pytest.fixture
def cache() -> Iterator[Path]:
    with scratch_cache() as directory:
        yield directory


def _live(cache: Path, fake: FakeModel) -> None:
    """Everything that writes, once."""
    store = ModelStore(cache)
    model = published(store, fake)
    store.remember(model.reference, model)
    with model.reader() as reader, model.writer() as writer:
        writer.clear_failure()
        writer.reserve(1000)
        reader.want(0, 0, 10)
        put(writer, fake)
        writer.fail(SourceDenied("no"))
        writer.seal()
    model.set_pin(pinned=True)
    model.set_pin(pinned=False)
    ModelStore(cache, max_bytes=allocated_bytes(cache / "models")).make_room(100_000, protect=NOBODY)
    with model.writer() as writer:
        put(writer, fake)
        writer.seal()


@pytest.mark.parametrize("trust", [Trust.FILE, Trust.CHUNK])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_corrupt_wherever_the_disk_was_full(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, trust: Trust
) -> None:
    fake = fake_model(trust, layers=1)
    disk = _FullDisk(monkeypatch, name)
    told: list[str] = []
    for at in range(1000):
        disk.left = at
        try:
            _live(cache, fake)
        except NoSpace as error:
            told.append(str(error))
        untouched, disk.left = disk.left is not None, None
        _look(cache, fake)
        if untouched:
            break
    assert untouched, "never got through"
    assert len(told) >= (1 if name == "write" else at // 2), "most calls that fail must be told"
    assert all("disk is full" in line for line in told)


def _look(cache: Path, fake: FakeModel) -> None:
    store = ModelStore(cache)
    store.sweep()
    assert not store.damaged()
    assert not [name for name in os.listdir(cache / "models") if ".tmp-" in name]
    for model in store.models():
        assert model.check_integrity(repair=False).is_sound
        assert all(bytes_on_disk(model, *chunk) == fake.data(*chunk) for chunk in present(model))
        with model.writer() as writer:
            put(writer, fake)
            writer.seal()
        assert model.status().complete
        store.remove(model.key)
