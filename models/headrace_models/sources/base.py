"""What every source of models can do: list a model's files, pin them, read a closed range of one.

A source is opened for one model at one revision. It finds out what the files are, how large, and by what they are
pinned; it reads ranges; it never writes to the store, never retries and never decides what to fetch: `fetch` does.
All of it blocks and may be called from many threads at once.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from headrace_models.digest import Sha256


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a model.

    `path` is relative to the model's directory, with forward slashes, and already checked: no empty, `.` or `..` part,
    no backslash, no control characters, not absolute. `validator` is what pins the content (a digest, a strong ETag, a
    version id, size and time of a local file); None: nothing does, and the size is all that is compared. `digest` is
    of the whole file where the source states it before the bytes.
    """

    path: str
    size_bytes: int
    validator: str | None = None
    digest: Sha256 | None = None


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that are known when the source is opened (tar headers and padding)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes `begin` to `end` (not included) of the model's file `path`."""

    path: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Proof:
    """`digest` is the SHA-256 of the concatenated `parts`. A raw blob is one FileRange; a tar layer is its headers and
    padding, as Literals, between the ranges of the files in it."""

    digest: Sha256
    parts: tuple[Literal | FileRange, ...]

    @property
    def paths(self) -> frozenset[str]:
        """The files that this vouches for."""
        return frozenset(part.path for part in self.parts if isinstance(part, FileRange))


def proof_of(file: SourceFile) -> Proof | None:
    """The proof of a file whose own digest is known."""
    return Proof(file.digest, (FileRange(file.path, 0, file.size_bytes),)) if file.digest else None


class Body(Protocol):
    """The bytes of an answer. `begin` to `end` (not included) is the part of the file that they are: what was asked
    for, or the whole file where the source ignores ranges."""

    @property
    def begin(self) -> int: ...

    @property
    def end(self) -> int: ...

    def read(self, max_bytes: int) -> bytes:
        """The next bytes, at most so many; b"" at the end. Raises SourceUnavailable when the connection breaks, stalls
        or ends early."""
        ...


class Source(Protocol):
    """One model at one revision.

    `revision` is a text that is the same only if every file is the same, as far as the source can tell (manifest
    digest, commit, or a digest over paths, sizes and validators). `pinned_index` is the path of the one file that is a
    seek index bound to the revision by a digest, if there is one. `max_connections` is how many reads at once are
    polite.
    """

    @property
    def revision(self) -> str: ...

    @property
    def files(self) -> tuple[SourceFile, ...]: ...

    @property
    def proofs(self) -> tuple[Proof, ...]: ...

    @property
    def pinned_index(self) -> str | None: ...

    @property
    def max_connections(self) -> int: ...

    def read(self, file: SourceFile, begin: int, end: int) -> AbstractContextManager[Body]:
        """Bytes `begin` to `end` (not included) of `file`; leaving the context before the end drops the connection.

        Raises SourceUnavailable, SourceDenied, SourceChanged (the file is not the one with `file.validator` and
        `file.size_bytes`), ModelNotFound, SourceUnusable.
        """
        ...

    def close(self) -> None:
        """Close connections and remove what was spooled; reads under way fail with SourceUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source may use.

    `spool` is an existing directory of ours on the store's file system, where compressed layers are unpacked.
    `on_kept` is called whenever bytes have come that need not come again although the source is not open yet.
    `insecure_hosts` (host or host:port) may be spoken to over plain HTTP; loopback always may. `environ` holds the
    credentials and endpoints that the environment gives: HF_TOKEN, HF_ENDPOINT, DOCKER_CONFIG, AWS_..., proxies.
    """

    spool: Path
    insecure_hosts: frozenset[str] = frozenset()
    stall_seconds: float = 20.0
    connect_seconds: float = 10.0
    environ: Mapping[str, str] = field(default_factory=dict)
    on_kept: Callable[[], None] = lambda: None


def read_exactly(source: Source, file: SourceFile, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` of `file` in memory; skips what comes before when the source ignores ranges.

    Raises what `Source.read` and `Body.read` raise.
    """
    parts: list[bytes] = []
    with source.read(file, begin, end) as body:
        position = body.begin
        while position < end:
            data = body.read(1 << 20)
            if not data:
                break
            parts.append(data[max(0, begin - position) : end - position])
            position += len(data)
    return b"".join(parts)
