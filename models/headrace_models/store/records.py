"""The small JSON files of the store, parsed strictly: `record.json`, `status.json`, `failure.json` and `refs/*.json`.

What cannot be read is damage, said with StoreDamaged; what damage means is for the caller to decide. All have a number
of their format, so that a later version can tell what it finds.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from headrace_models.errors import ModelError, StoreDamaged
from headrace_models.trust import Trust

FORMAT = 1
MAX_MESSAGE_CHARS = 2000

_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,60}-[0-9a-f]{12}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def is_key(text: str) -> bool:
    """Whether `text` may be the name of a model's directory."""
    return _KEY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Record:
    """What never changes of a model. `directory` is where a local model's files are, None for one that is kept here;
    `trust` is what was known of a local model's bytes when it was recorded."""

    reference: str
    revision: str
    directory: Path | None
    trust: Trust | None

    def to_json(self) -> bytes:
        """The content of `record.json`."""
        return _document(
            reference=self.reference,
            revision=self.revision,
            directory=None if self.directory is None else str(self.directory),
            trust=self.trust,
        )

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises StoreDamaged."""
        match _parse(data, "record.json"):
            case {
                "format": 1,
                "reference": str(reference),
                "revision": str(revision),
                "directory": None | str() as directory,
                "trust": None | "chunk" | "file" | "none" as trust,
                **others,
            } if not others and (directory is None or directory.startswith("/")):
                place = None if directory is None else Path(directory)
                return cls(reference, revision, place, None if trust is None else Trust(trust))
            case _:
                raise StoreDamaged("record.json is not what this version writes")


@dataclass(frozen=True, slots=True)
class Status:
    """How far what is written can be believed.

    `boot_id` is the start of the machine during which it was written; `sealed`: all of it is there and on disk;
    `proven`: it was all checked against digests known before the bytes. `bound`: it was sealed once, so the digests
    recorded then are on disk, and whatever is fetched again must have them; all three stay with a partial eviction but
    `sealed`. `num_doubts`: how often bytes that had been marked proved wrong, or might have; whoever has read any since
    an earlier number may have read those.
    """

    boot_id: str
    sealed: bool = False
    proven: bool = False
    bound: bool = False
    num_doubts: int = 0

    def to_json(self) -> bytes:
        """The content of `status.json`."""
        return _document(
            boot_id=self.boot_id,
            sealed=self.sealed,
            proven=self.proven,
            bound=self.bound,
            num_doubts=self.num_doubts,
        )

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises StoreDamaged."""
        match _parse(data, "status.json"):
            case {
                "format": 1,
                "boot_id": str(boot_id),
                "sealed": bool(sealed),
                "proven": bool(proven),
                "bound": bool(bound),
                "num_doubts": int(num_doubts),
                **others,
            } if not others:
                return cls(boot_id, sealed, proven, bound, num_doubts)
            case _:
                raise StoreDamaged("status.json is not what this version writes")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the last fetch ended without the bytes. `kind` is the name of the error's class."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: ModelError) -> Self:
        """What readers are told of `error`."""
        return cls(type(error).__name__, _CONTROL.sub(" ", str(error))[:MAX_MESSAGE_CHARS])

    def to_json(self) -> bytes:
        """The content of `failure.json`."""
        return _document(kind=self.kind, message=self.message)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises StoreDamaged."""
        match _parse(data, "failure.json"):
            case {"format": 1, "kind": str(kind), "message": str(message), **others} if not others:
                return cls(kind, message)
            case _:
                raise StoreDamaged("failure.json is not what this version writes")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a reference resolved to last."""

    reference: str
    key: str
    revision: str

    def to_json(self) -> bytes:
        """The content of a file in `refs`."""
        return _document(reference=self.reference, key=self.key, revision=self.revision)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises StoreDamaged."""
        match _parse(data, "a file in refs"):
            case {"format": 1, "reference": str(reference), "key": str(key), "revision": str(revision), **others} if (
                not others and is_key(key)
            ):
                return cls(reference, key, revision)
            case _:
                raise StoreDamaged("a file in refs is not what this version writes")


def _document(**fields: str | bool | int | None) -> bytes:
    return json.dumps({"format": FORMAT, **fields}, indent=1).encode()


def _parse(data: bytes, name: str) -> object:
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(f"{name} is not JSON") from error
    return document
