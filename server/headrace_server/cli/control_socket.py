"""The control socket: a Unix socket in the server's state directory, through which the operator of this machine speaks
to the server without a key. Whoever can open it is the operator, so the file system decides: the directory is made for
its owner alone, the socket is its owner's alone before anybody can connect.

A server without one serves all the same; it says why once. Sockets that dead servers left are removed, one that
somebody listens on never is: servers that start at the same moment are kept apart by a lock on the directory.
"""

import errno
import logging
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace_server.errors import UsageError
from headrace_server.tenancy.state_files import locked, private_directory, state_directory

logger = logging.getLogger(__name__)

_NAME = re.compile(r"control-(\d{1,5})\.sock")
_PROBE_SECONDS = 1.0
_BACKLOG = 16


def control_path(state_dir: Path, port: int) -> Path:
    """Where the server on this port listens."""
    return state_directory(state_dir) / f"control-{port}.sock"


@contextmanager
def control_listener(state_dir: Path, port: int) -> Iterator[socket.socket | None]:
    """Listen on the control socket and remove it at the end; None, and one warning, where it cannot be made.

    Raises:
        UsageError: another server listens there.
    """
    path = control_path(state_dir, port)
    try:
        listener = _listen(path)
        identity = _identity(path)
    except OSError as error:
        hint = "headrace ps, load, unload, pin and drain need --url"
        logger.warning("no_control_socket", extra={"path": str(path), "detail": f"{error.strerror or error}; {hint}"})
        yield None
        return
    try:
        with listener:
            yield listener
    finally:
        _remove(path, identity)


def is_live(path: Path) -> bool:
    """Whether somebody listens there.

    Raises:
        OSError: it cannot be found out, for example because the socket is another user's.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):  # somebody does, and has no time
            return True
    return True


def live_ports(state_dir: Path) -> list[int]:
    """The ports whose servers listen in this directory, as far as this user may know."""
    directory = state_directory(state_dir)
    names = [match for path in directory.glob("control-*.sock") if (match := _NAME.fullmatch(path.name))]
    return sorted(int(name[1]) for name in names if _may_be_used(directory / name[0]))


def _may_be_used(path: Path) -> bool:
    try:
        return is_live(path)
    except OSError:
        return False


def _listen(path: Path) -> socket.socket:
    private_directory(path.parent)
    with locked(path.parent):
        _sweep(path.parent)
        _clear(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            path.chmod(0o600)  # nobody can connect before `listen`
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    return listener


def _sweep(directory: Path) -> None:
    """Remove what servers that were killed left, which on ports of their own nobody would replace."""
    for path in directory.glob("control-*.sock"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if _NAME.fullmatch(path.name) and stat.S_ISSOCK(path.lstat().st_mode) and not is_live(path):
                path.unlink()


def _clear(path: Path) -> None:
    """Make way for a new socket."""
    if is_live(path):
        raise UsageError(f"a server is running already: it listens on {path}")
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, f"{path} is not a socket")
        path.unlink()
    except FileNotFoundError:
        return


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove(path: Path, identity: tuple[int, int]) -> None:
    """Remove our socket; another server's, which took its place after somebody had removed ours, stays."""
    try:
        if _identity(path) == identity:
            path.unlink()
    except OSError:
        return
