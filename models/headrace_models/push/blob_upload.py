"""One blob into a registry: looked for first, taken over from another repository where that works, else sent.

A small blob goes in one request, a large one in pieces. After a broken connection the registry is asked how much it has
of a large one, and the rest is sent; where it has thrown the upload away, as docker-registry 2.8 does with one whose
last piece was cut off, it begins again. A registry that takes no pieces gets the blob in one request. It compares the
digest at the end; where that is wrong, since a piece went on arriving after the question, the blob is sent once more.
Memory: one block.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from headrace_models.digest import Sha256
from headrace_models.errors import DigestMismatch, SourceChanged, SourceUnavailable
from headrace_models.fetch.patience import Patience
from headrace_models.push.contents import Content
from headrace_models.push.registry_writer import PieceRefused, RegistryWriter

# Far more than the least piece that registries want (5 MiB where they keep them in S3), and 5.4 s at 100 Mb/s.
PIECE_BYTES = 64 << 20


class Outcome(StrEnum):
    """How a blob came to be in the repository."""

    PRESENT = "present"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


@dataclass(frozen=True, slots=True)
class Blob:
    """What to upload. `name` is for messages."""

    name: str
    digest: Sha256
    content: Content


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """What the uploads of one push share. `on_sent` gets the bytes of a blob that have been sent since it was told
    last, and less than nothing where they are sent again."""

    patience: Patience
    stop: threading.Event
    on_sent: Callable[[int], None] = lambda _num_bytes: None
    piece_bytes: int = PIECE_BYTES


class BlobUpload:
    """The upload of one blob, for one thread."""

    def __init__(self, registry: RegistryWriter, blob: Blob, settings: UploadSettings) -> None:
        self._registry, self._blob, self._settings = registry, blob, settings
        self._size_bytes = blob.content.size_bytes
        self._place: str | None = None
        self._begin = 0
        self._told_bytes = 0
        self._num_wrong = 0
        self._is_in_pieces = self._size_bytes > settings.piece_bytes

    def run(self) -> Outcome:
        """Upload it; tries again as long as patience lasts. Raises ModelError."""
        settings = self._settings
        while True:
            settings.patience.asked()
            try:
                return self._try()
            except SourceUnavailable as error:
                if settings.stop.is_set() or settings.stop.wait(settings.patience.wait_seconds(error)):
                    raise
            except PieceRefused:
                self._is_in_pieces = False
                self._start_over()
            except DigestMismatch:
                self._num_wrong += 1
                if self._num_wrong > 1:
                    raise
                self._is_in_pieces = False
                self._start_over()

    def _try(self) -> Outcome:
        if self._place is None:
            if self._registry.has_blob(self._blob.digest):
                return Outcome.PRESENT
            self._place = self._registry.start(self._blob.digest)
            if self._place is None:
                return Outcome.MOUNTED
        else:
            self._find_place()
        if self._place is None:
            return self._try()
        if self._is_in_pieces:
            self._send_pieces(self._place)
        else:
            place, self._place = self._place, None
            self._registry.put_whole(place, self._blob.digest, self._body(0, self._size_bytes), self._size_bytes)
        self._settings.patience.kept()
        return Outcome.UPLOADED

    def _find_place(self) -> None:
        """After something broke: where to go on, or that there is nothing to go on with."""
        found = self._registry.received(self._place) if self._place is not None else None
        if found is None or not 0 <= found[0] <= self._size_bytes:
            self._start_over()
        else:
            self._begin, self._place = found
            self._tell(self._begin)

    def _send_pieces(self, place: str) -> None:
        while self._begin < self._size_bytes:
            end = min(self._size_bytes, self._begin + self._settings.piece_bytes)
            place = self._registry.put_piece(place, self._body(self._begin, end), self._begin, end)
            self._place, self._begin = place, end
            self._settings.patience.kept()
        self._registry.finish(place, self._blob.digest)

    def _start_over(self) -> None:
        self._place, self._begin = None, 0
        self._tell(0)

    def _body(self, begin: int, end: int) -> "_Body":
        return _Body(self._blob, begin, end, self._tell, self._settings.stop)

    def _tell(self, sent_bytes: int) -> None:
        if sent_bytes > self._told_bytes:
            self._settings.patience.progress()
        self._settings.on_sent(sent_bytes - self._told_bytes)
        self._told_bytes = sent_bytes


@dataclass(frozen=True, slots=True)
class _Body:
    """Bytes `begin` to `end` (not included) of a blob; begins anew each time it is iterated."""

    blob: Blob
    begin: int
    end: int
    on_position: Callable[[int], None]
    stop: threading.Event

    def __iter__(self) -> Iterator[bytes]:
        position = self.begin
        for block in self.blob.content.blocks(self.begin, self.end):
            if self.stop.is_set():
                raise SourceUnavailable("the push was stopped")
            yield block
            position += len(block)
            self.on_position(position)
        if position != self.end:
            raise SourceChanged(f"{self.blob.name} is shorter than it was")
