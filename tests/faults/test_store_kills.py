"""Kill processes in the middle of what they do to a store, at any call that changes files, and look at what is left.

FAULT_KILLS is how often (20 unless set), FAULT_SEED where the drawing begins; a failure names its seed, and
`FAULT_SEED=<that> FAULT_KILLS=1` does the same again.
"""

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace_models.store.model_directory import model_key
from headrace_models.store.model_store import ModelStore
from headrace_models.trust import Trust
from tests.fakes.stored_models import bytes_on_disk, present, put, scratch_cache
from tests.faults.store_churn import FAKES

KILLS = int(os.environ.get("FAULT_KILLS", "20"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
ROUND = 20
CROWD = 4
MAX_CALLS = 120
SIGKILLED = -9
WHOLE = {model_key(fake.index.reference, fake.index.revision): set(fake.chunks) for fake in FAKES}


class _Churner:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def order(self, *words: object) -> tuple[list[list[str]], list[int]]:
        """What the children told, and how each ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        told: list[list[str]] = []
        for line in self._process.stdout:
            told.append(line.split())
            if told[-1][0] == "end":
                return told[:-1], [int(status) for status in told[-1][1:]]
        raise AssertionError(f"the children are gone: {told}")


@contextmanager
def _churner(cache: Path, repository: Path) -> Iterator[_Churner]:
    command = [sys.executable, "-m", "tests.faults.store_churn", str(cache)]
    path = os.pathsep.join(str(repository / name) for name in (".", "models"))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        yield _Churner(process)


class _Ledger:
    """What was put and has not been taken away since, as far as the dead could tell."""

    def __init__(self) -> None:
        self.put: dict[str, set[tuple[int, int]]] = defaultdict(set)

    def read(self, told: list[list[str]]) -> None:
        for line in told:
            match line:
                case ["put", key, file, chunk]:
                    self.put[key].add((int(file), int(chunk)))
                case ["removing", key]:
                    self.put.pop(key, None)
                case ["evicting"]:
                    self.put.clear()
                case ["sealed", key]:
                    self.put[key] |= WHOLE[key]
                case _:
                    pass


@pytest.mark.parametrize("first", range(SEED, SEED + KILLS, ROUND))
def test_no_kill_leaves_wrong_bytes_or_takes_away_what_was_there(first: int, repository: Path) -> None:
    ledger = _Ledger()
    with scratch_cache() as cache, _churner(cache, repository) as churner:
        for seed in range(first, min(first + ROUND, SEED + KILLS)):
            told, statuses = churner.order("kill", seed, random.Random(seed).randrange(1, MAX_CALLS))
            assert statuses == [SIGKILLED], f"seed {seed}: {told[-3:]}"
            ledger.read(told)
            _look(cache, ledger, f"seed {seed}, {' '.join(told[-1])}")
        _finish(cache)


@pytest.mark.parametrize("first", range(SEED, SEED + max(1, KILLS // ROUND)))
def test_many_processes_at_once_neither_block_nor_harm_each_other(first: int, repository: Path) -> None:
    with scratch_cache() as cache, _churner(cache, repository) as churner:
        for seed in range(first * 3, first * 3 + 3):
            told, statuses = churner.order("crowd", seed, CROWD)
            failed = [line for line in told if line[0] == "failed"]
            assert not failed, f"seed {seed}: {failed}"
            assert set(statuses) <= {0, SIGKILLED}
            _look(cache, _Ledger(), f"seed {seed}")
        _finish(cache)


def _look(cache: Path, ledger: _Ledger, when: str) -> None:
    """Everything that is marked is right, and everything that was put is marked."""
    store = ModelStore(cache)
    store.sweep()
    assert not store.damaged(), when
    assert not [name for name in os.listdir(cache / "models") if ".tmp-" in name], when
    for model in store.models():
        fake = next(fake for fake in FAKES if fake.index.reference == model.reference)
        report = model.check_integrity(repair=False)
        assert report.is_sound, (when, report)
        there = present(model)
        assert all(bytes_on_disk(model, *chunk) == fake.data(*chunk) for chunk in there), when
        assert ledger.put[model.key] <= there, when
        status = model.status()
        assert (status.leased, status.fetching) == (False, False), when
        if status.sealed:
            assert status.complete, when


def _finish(cache: Path) -> None:
    """What is left can be completed, and nothing that is there is asked for again."""
    store = ModelStore(cache)
    for model in store.models():
        fake = next(fake for fake in FAKES if fake.index.reference == model.reference)
        before = present(model)
        with model.writer() as writer:
            assert set(writer.missing()) == set(fake.chunks) - before
            put(writer, fake)
            writer.seal()
        status = model.status()
        assert status.complete
        assert status.proven is (fake.index.trust is not Trust.NONE)
        model.set_pin(pinned=False)
        store.remove(model.key)
    assert not store.models()
