"""Locks of the store: who excludes whom, when they end, and file systems that only pretend."""

import ctypes
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace_models.errors import StoreUnusable
from headrace_models.store import locks
from headrace_models.store.locks import FLOCK_FORMAT, Hold, is_held, probe_locking, try_lock, wait_lock
from headrace_models.store.model_store import ModelStore
from headrace_models.store.mounts import file_system_type

HOLDER = """
import sys
from pathlib import Path
from headrace_models.store.locks import Hold, try_lock
lock = try_lock(Path(sys.argv[1]), Hold.EXCLUSIVE)
print("held", flush=True)
sys.stdin.read()
"""


class _Flock(ctypes.Structure):
    """struct flock of Linux with 64-bit offsets (fcntl(2))."""

    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_int64),
        ("l_len", ctypes.c_int64),
        ("l_pid", ctypes.c_int),
    )


@pytest.mark.parametrize("first", Hold)
@pytest.mark.parametrize("second", Hold)
def test_only_two_shared_holders_go_together(tmp_path: Path, first: Hold, second: Hold) -> None:
    path = tmp_path / "lock"
    with try_lock(path, first) or pytest.fail("refused"):
        lock = try_lock(path, second)
        together = lock is not None
        assert is_held(path, second) is not (first is second is Hold.SHARED)
        if lock is not None:
            lock.close()
    assert together is (first is second is Hold.SHARED)


def test_a_lock_ends_when_it_is_closed_however_often(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock", Hold.EXCLUSIVE)
    assert lock is not None
    lock.close()
    lock.close()
    assert not is_held(tmp_path / "lock", Hold.EXCLUSIVE)
    with try_lock(tmp_path / "lock", Hold.EXCLUSIVE) or pytest.fail("refused"):
        pass


def test_closing_another_descriptor_of_the_file_releases_nothing(tmp_path: Path) -> None:
    """POSIX record locks would be gone."""
    path = tmp_path / "lock"
    with try_lock(path, Hold.EXCLUSIVE) or pytest.fail("refused"):
        path.read_bytes()
        assert is_held(path, Hold.SHARED)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert try_lock(path, Hold.SHARED) is None
        holder.kill()
        with wait_lock(path, Hold.EXCLUSIVE, while_waiting=lambda: None):
            pass


def test_locks_are_closed_in_programs_that_are_started(tmp_path: Path) -> None:
    with try_lock(tmp_path / "lock", Hold.EXCLUSIVE) or pytest.fail("refused"):
        names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert str(tmp_path / "lock") in names
        code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if n < '9'])"
        child = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=False, close_fds=False)
        assert str(tmp_path / "lock") not in child.stdout.decode()


def test_waiting_goes_on_until_the_holder_leaves(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = try_lock(path, Hold.EXCLUSIVE)
    assert holder is not None
    waited = threading.Event()

    def leave() -> None:
        waited.set()
        holder.close()

    with wait_lock(path, Hold.SHARED, while_waiting=leave):
        assert waited.is_set()
        assert is_held(path, Hold.EXCLUSIVE)


def test_what_is_raised_while_waiting_ends_the_wait_and_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_lock(path, Hold.EXCLUSIVE) or pytest.fail("refused"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyboardInterrupt):
            wait_lock(path, Hold.SHARED, while_waiting=_interrupt)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_knows_that_its_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_lock(path, Hold.SHARED) or pytest.fail("refused") as lock:
        assert lock.is_of(path)
        path.rename(tmp_path / "moved")
        assert not lock.is_of(path)
        path.touch()
        assert not lock.is_of(path)
        assert lock.is_of(tmp_path / "moved")


def test_a_file_that_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none" / "lock", Hold.EXCLUSIVE)


@pytest.mark.skipif(sys.platform != "linux", reason="struct flock of Linux")
def test_the_packed_lock_is_as_large_as_the_kernels() -> None:
    assert len(locks._flock(Hold.SHARED)) == ctypes.sizeof(_Flock)
    assert FLOCK_FORMAT.endswith("4x")


def test_a_file_system_that_locks_passes_the_probe_and_keeps_nothing(tmp_path: Path) -> None:
    probe_locking(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_gives_every_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_set", lambda _descriptor, _hold: True)
    with pytest.raises(StoreUnusable, match=r"gives one lock to two holders: put the model cache .* on a local disk"):
        probe_locking(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_file_is_not_blamed_for_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(locks, "_open", refuse)
    with pytest.raises(StoreUnusable, match="cannot use the model cache .*: Read-only file system"):
        ModelStore(tmp_path)


def test_a_file_system_that_knows_no_shared_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = locks._set
    monkeypatch.setattr(locks, "_set", lambda descriptor, _hold: honest(descriptor, Hold.EXCLUSIVE))
    with pytest.raises(StoreUnusable):
        probe_locking(tmp_path)


def test_a_file_system_that_refuses_locks_is_named_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _hold: Hold) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_set", refuse)
    kind = file_system_type(tmp_path)
    assert kind
    with pytest.raises(StoreUnusable, match=rf"\({kind}\) refuses locks \(No locks available\)"):
        probe_locking(tmp_path)


def test_the_type_is_that_of_the_deepest_and_last_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "23 22 0:30 / /data rw shared:1 - nfs4 host:/x rw\n"
        "24 22 0:31 / /data rw - lustre y rw\n"
        "25 22 0:32 / /with\\040space rw - tmpfs z rw\n"
    )
    assert file_system_type(Path("/data/models"), mounts=mounts) == "lustre"
    assert file_system_type(Path("/database"), mounts=mounts) == "ext4"
    assert file_system_type(Path("/with space/x"), mounts=mounts) == "tmpfs"
    assert file_system_type(Path("/data"), mounts=tmp_path / "none") is None


def _interrupt() -> None:
    raise KeyboardInterrupt
