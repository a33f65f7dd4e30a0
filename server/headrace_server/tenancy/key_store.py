"""The store of keys on disk: `keys.json` and the `pepper` beside it, in one folder.

Written by `headrace keys`, one process at a time (a lock on the folder), in one step each; read by servers. The pepper
is made with the first key and never again: without it no key of the store would open, so a store without its pepper is
an error and not a new beginning. A folder that cannot be written to, such as a mounted Secret, serves for reading.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from headrace_models.store.files import replace_file
from headrace_server.domain import Scope, TenantId
from headrace_server.errors import UsageError
from headrace_server.tenancy.key_records import KEY_PREFIX, KeyRecord, digest_of, new_key, parsed, written
from headrace_server.tenancy.state_files import locked, private_directory

MIN_PEPPER_BYTES = 32
MAX_FILE_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be for. `lifetime_seconds` None: for ever."""

    tenant: TenantId
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    name: str = ""
    lifetime_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a store holds."""

    records: tuple[KeyRecord, ...]
    pepper: bytes = field(repr=False)


class KeyStore:
    """See the module. Every method blocks and raises UsageError with one line for whatever is wrong."""

    def __init__(self, folder: Path) -> None:
        self.keys_path = folder / "keys.json"
        self.pepper_path = folder / "pepper"
        self._folder = folder

    @property
    def exists(self) -> bool:
        """Whether a key was ever made here."""
        return self.keys_path.exists()

    def read(self) -> KeySet:
        """Everything that is here."""
        try:
            records = parsed(_content(self.keys_path))
        except ValueError as error:
            raise UsageError(f"{self.keys_path} is damaged: {error}") from error
        return KeySet(records, self._pepper())

    def records(self) -> tuple[KeyRecord, ...]:
        """The records; none where no key was ever made."""
        return self.read().records if self.exists else ()

    def create(self, wanted: NewKey, now: int) -> tuple[str, KeyRecord]:
        """Make a key; it is returned here and nowhere else."""
        with _writing(self._folder):
            found = self.read() if self.exists else KeySet((), self._new_pepper())
            id, key = new_key(record.id for record in found.records)
            record = KeyRecord(
                id,
                digest_of(key, found.pepper),
                wanted.tenant,
                wanted.scopes,
                now,
                wanted.name,
                None if wanted.lifetime_seconds is None else now + wanted.lifetime_seconds,
            )
            replace_file(self.keys_path, written([*found.records, record]))
        return key, record

    def revoke(self, prefix: str, now: int) -> KeyRecord:
        """Let the key whose id begins so open nothing any more."""
        with _writing(self._folder):
            records = list(self.records())
            place = _place(records, prefix.removeprefix(KEY_PREFIX))
            if records[place].revoked is None:
                records[place] = replace(records[place], revoked=now)
                replace_file(self.keys_path, written(records))
        return records[place]

    def _new_pepper(self) -> bytes:
        """Of a store without keys: the one that is there, of a `create` that was killed, or a new one."""
        if not self.pepper_path.exists():
            replace_file(self.pepper_path, secrets.token_bytes(MIN_PEPPER_BYTES))
        return self._pepper()

    def _pepper(self) -> bytes:
        if not self.pepper_path.exists():
            raise UsageError(
                f"{self.pepper_path} is missing: the keys in {self.keys_path} cannot be checked without it"
            )
        pepper = _content(self.pepper_path)
        if len(pepper) < MIN_PEPPER_BYTES:
            raise UsageError(f"{self.pepper_path} is damaged: shorter than {MIN_PEPPER_BYTES} bytes")
        return pepper


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        private_directory(folder)
        with locked(folder):
            yield
    except OSError as error:
        raise UsageError(f"keys cannot be written in {folder}: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    """Links are followed: a mounted Secret is made of them."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _place(records: list[KeyRecord], prefix: str) -> int:
    id = prefix.partition("-")[0]  # a whole key names itself too
    found = [place for place, record in enumerate(records) if id and record.id.startswith(id)]
    if len(found) != 1:
        raise UsageError(f"{len(found) or 'no'} keys begin with {KEY_PREFIX}{id[:20]}; headrace keys ls lists them")
    return found[0]
