"""One shard of a model as a read-only, seekable file, whether its bytes have come yet or not.

A read demands exactly the chunks that it touches and waits for them, so whoever reads one tensor's bytes fetches no
other. Nothing is mapped and there is no file descriptor to take: a map would show bytes that are not there yet.
`pread` may be called from many threads; the position that `read` and `seek` move belongs to one user.
"""

import io
import os
from typing import TYPE_CHECKING, Self

from headrace_models.errors import StoreDamaged
from headrace_models.reading.shard_maps import open_shard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from headrace_models.store.model_reader import ModelReader


class SeekableFile(io.RawIOBase):
    """Shard number `file` of the model that `reader` reads; the reader stays open for as long as this file is used.

    Reads raise what `ModelReader.wait_for` raises (FetchFailed, StoreDamaged) and OSError from the disk.
    """

    def __init__(self, reader: "ModelReader", file: int) -> None:
        """Raises StoreDamaged when the shard is missing or has another size than the index says."""
        super().__init__()
        self._descriptor: int | None = None
        self._reader = reader
        self._file = file
        self._position = 0
        self.name = reader.index.files[file].path
        self.size = reader.index.files[file].size_bytes
        self._descriptor = open_shard(reader.model, file)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """`num_bytes` from `offset` on, fewer at the end of the file; does not move the position."""
        buffer = bytearray(max(0, min(num_bytes, self.size - offset)))
        return bytes(buffer[: self._fill(memoryview(buffer), offset)])

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        count = self._fill(view[: max(0, self.size - self._position)], self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's; never short but at the end."""
        left = max(0, self.size - self._position)
        data = self.pread(left if size is None or size < 0 else size, self._position)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        match whence:
            case os.SEEK_SET:
                position = offset
            case os.SEEK_CUR:
                position = self._position + offset
            case os.SEEK_END:
                position = self.size + offset
            case _:
                raise ValueError(f"invalid whence: {whence}")
        if position < 0:
            raise ValueError(f"negative position: {position}")
        self._position = position
        return position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        super().close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def _fill(self, view: memoryview, offset: int) -> int:
        """Read into all of `view`; what it covers lies in the file."""
        descriptor = self._check_open()
        if offset < 0:
            raise ValueError(f"negative offset: {offset}")
        if not view:
            return 0
        self._reader.wait_for(self._file, offset, offset + len(view))
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise StoreDamaged(f"{self.name} became shorter while it was read")
            done += count
        return done

    def _check_open(self) -> int:
        if self._descriptor is None:
            raise ValueError("I/O operation on closed file")
        return self._descriptor
