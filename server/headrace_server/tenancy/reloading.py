"""Files that are read again when they change, without a restart: keys, and issuers' public keys.

Looked at when somebody asks, at most once a second. What cannot be used is logged once, and what was read last stays in
force: a file that is being written, or was written wrongly, must neither let anybody in nor shut everybody out.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from headrace_server.errors import UsageError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

Value = TypeVar("Value")
_Look: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


class Reloaded(Generic[Value]):
    """What `read` made of `paths`, as new as the last look.

    Args:
        read: raises UsageError where the files cannot be used.
        monotonic: seconds on a clock that never goes back.

    Raises:
        UsageError: they cannot be used now; afterwards nothing is raised.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], Value], *, monotonic: Callable[[], float]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._look = self._look_now()
        self._value = read()

    def current(self) -> Value:
        """The value. Blocks for as long as small files take to be read."""
        now = self._monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            look = self._look_now()
            if look != self._look:
                self._look = look
                self._renew()
        return self._value

    def _renew(self) -> None:
        try:
            self._value = self._read()
        except UsageError as error:
            logger.error("file_not_taken", extra={"detail": f"{error}; what was there before stays in force"})
        else:
            logger.info("file_taken", extra={"path": str(self._paths[0])})

    def _look_now(self) -> _Look:
        return tuple(map(_identity, self._paths))


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
