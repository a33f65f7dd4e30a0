"""Takes tensors in as an engine would, and tells when they came and how much memory that took. Runs inside a peer.

Of every tensor one byte in each page is read, so that what was only mapped is loaded too; then it is dropped. Memory is
the process's own, without files (RssAnon): the kernel keeps no peak of it, so it is read every few milliseconds.
Linux only.
"""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PAGE_BYTES = 4096
_LOOK_SECONDS = 0.005
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Intake:
    """What a peer did.

    Attributes:
        peer, version: who it was.
        seconds: from the call that asked for the model, imports not counted, until the last tensor had been read.
        first_tensor_seconds: until the first one had.
        num_tensors, tensor_bytes: what came.
        anon_rss_before_bytes, peak_anon_rss_bytes: memory of the process before the call, and the most of it after.
        digest: over names and contents in the order of names; None: was not asked for.
    """

    peer: str
    version: str
    seconds: float
    first_tensor_seconds: float
    num_tensors: int
    tensor_bytes: int
    anon_rss_before_bytes: int
    peak_anon_rss_bytes: int
    digest: str | None


@dataclass(slots=True)
class Taker:
    """A context in which tensors come in; `finish` gives the result. The clock starts when it is entered."""

    peer: str
    version: str
    with_digest: bool
    _began: float = 0.0
    _first: float | None = None
    _num_bytes: int = 0
    _parts: dict[str, str] = field(default_factory=dict)
    _before: int = 0
    _peak: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)
    _watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = self._peak = anonymous_bytes()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    def take(self, name: str, tensor: Any) -> None:
        """Read a torch tensor on the CPU."""
        import torch

        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        data[::_PAGE_BYTES].sum()
        self._first = self._first or time.monotonic()
        self._num_bytes += data.numel()
        self._parts[name] = hashlib.sha256(data.numpy()).hexdigest() if self.with_digest else ""

    def finish(self) -> Intake:
        """To be called inside the context, after the last tensor."""
        ended = time.monotonic()
        self._peak = max(self._peak, anonymous_bytes())
        listing = "".join(f"{part} {name}\n" for name, part in sorted(self._parts.items()))
        return Intake(
            peer=self.peer,
            version=self.version,
            seconds=ended - self._began,
            first_tensor_seconds=(self._first or ended) - self._began,
            num_tensors=len(self._parts),
            tensor_bytes=self._num_bytes,
            anon_rss_before_bytes=self._before,
            peak_anon_rss_bytes=self._peak,
            digest=hashlib.sha256(listing.encode()).hexdigest() if self.with_digest else None,
        )

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._peak = max(self._peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    match = _ANONYMOUS.search(Path("/proc/self/status").read_text())
    return int(match[1]) << 10 if match else 0
