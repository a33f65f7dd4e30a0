"""All models in one cache directory: find them, publish them, make room, remove, sweep.

Any number of processes and threads use one store at the same time, through locks that die with their holders; no state
is kept in memory, so every answer is that of the disk. Nothing here fetches.

    <cache>/models/.store.lock   who evicts          .<key>.lock        who publishes or removes a key
                   refs/         see `references`    .<key>.tmp-XXXX/   a draft, or what is being deleted
                   <key>/        see `model_directory`
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from headrace_models.errors import ModelBusy, ModelNotFound, NoSpace, StoreDamaged, StoreError, is_out_of_space
from headrace_models.publication import make_private, sweep, temporary_sibling
from headrace_models.store.drafting import Draft
from headrace_models.store.locks import PROBE_PREFIX, Hold, probe_locking, try_lock, wait_lock
from headrace_models.store.model_directory import ModelDirectory, model_key, model_names, removed
from headrace_models.store.records import Resolution, is_key
from headrace_models.store.references import References
from headrace_models.store.refusals import explained
from headrace_models.store.removal import key_lock, take_away
from headrace_models.store.room import Room
from headrace_models.store.space import free_bytes
from headrace_models.store.stored_model import StoredModel

OLD_PROBE_SECONDS = 3600.0

_TEMPORARY = re.compile(r"\.([^.]+)\.tmp-.+")


class ModelStore:
    """The store below `cache_dir`/models. Raises StoreUnusable where files cannot be locked or made.

    `max_bytes`: what everything below it may take, None for as much as the disk has. `disk_free_bytes` tells that.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        max_bytes: int | None = None,
        disk_free_bytes: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._models = cache_dir.absolute() / "models"
        self._room = Room(self._models, max_bytes, disk_free_bytes)
        with explained(f"use the model cache {cache_dir}"):
            make_private(self._models / "refs")
            probe_locking(self._models)
        self._references = References(self._models / "refs")

    def find(self, reference: str) -> StoredModel | None:
        """The model that a reference stood for last; None where that is unknown, removed or damaged. Raises
        StoreUnusable."""
        with explained("look for a model"):
            found = self._references.find(reference)
            return None if found is None else self._find(found.key)

    def get(self, reference: str, revision: str) -> StoredModel | None:
        """One revision of a model; None where it is not there, or damaged: then a draft replaces it. Raises
        StoreUnusable."""
        with explained("look for a model"):
            return self._find(model_key(reference, revision))

    def open_key(self, key: str) -> StoredModel:
        """The model of a key. Raises ModelNotFound, StoreDamaged, StoreUnusable."""
        with explained(f"open {key}"):
            return self._open(key)

    def models(self) -> tuple[StoredModel, ...]:
        """Every model that can be opened, by key. Raises StoreUnusable."""
        return tuple(model for _key, model in self._look_through() if isinstance(model, StoredModel))

    def damaged(self) -> tuple[tuple[str, str], ...]:
        """(key, what is wrong) of those that cannot; `remove` works for them, and so does fetching them again. Raises
        StoreUnusable."""
        return tuple((key, str(error)) for key, error in self._look_through() if isinstance(error, StoreError))

    @contextlib.contextmanager
    def draft(
        self, reference: str, revision: str, *, while_waiting: Callable[[], None] = lambda: None
    ) -> Iterator[Draft]:
        """Make a model, alone: whoever else makes the same one waits, calling `while_waiting`, and finds it then as
        `Draft.existing`. What was not published at the end is gone. Raises StoreError; a full disk is NoSpace, in the
        body too."""
        public = self._models / model_key(reference, revision)
        with contextlib.ExitStack() as held:
            with explained(f"prepare {public.name}"):
                lock = key_lock(self._models, public.name)
                held.enter_context(wait_lock(lock, Hold.EXCLUSIVE, while_waiting=while_waiting))
                sweep(self._models, name=public.name)
                temporary = held.enter_context(temporary_sibling(public, name=public.name))
                (temporary / "skeleton").mkdir()
                draft = Draft(temporary, public, (reference, revision), self._find(public.name))
            try:
                yield draft
            except OSError as error:
                if is_out_of_space(error):
                    raise NoSpace(f"cannot prepare {public.name}: the disk is full") from error
                raise

    def remember(self, reference: str, model: StoredModel) -> None:
        """From now on `find(reference)` is `model`. Raises StoreError."""
        with explained(f"remember what {reference} stands for"):
            self._references.remember(Resolution(reference, model.key, model.revision))

    def make_room(self, needed_bytes: int, *, protect: str) -> None:
        """Let the model with the key `protect` grow by so many bytes: evict what was used least recently until they fit
        into the budget and onto the disk, and reserve them as long as somebody fetches that model.

        Raises NoSpace, saying what is missing and what to do; StoreError.
        """
        with explained("make room"), wait_lock(self._models / ".store.lock", Hold.EXCLUSIVE, while_waiting=_nothing):
            self._room.make(needed_bytes, protect=protect)

    def remove(self, key: str) -> int:
        """Remove a model, damaged or pinned ones too; returns the bytes that it took.

        Raises ModelBusy when it is in use, being fetched or being prepared; ModelNotFound; StoreError.
        """
        if not is_key(key):
            raise ModelNotFound(f"no model {key[:100]!r} in the model cache")
        with explained(f"remove {key}"):
            freed_bytes = take_away(self._models, key)
            self._references.drop(lambda named: named == key)
        return freed_bytes

    def sweep(self) -> None:
        """Remove what dead processes left, references to models that are gone, and records of local directories that
        have changed since. Never touches what somebody uses. Raises StoreError."""
        with explained("sweep the model cache"):
            for name in os.listdir(self._models):
                self._sweep_one(name)
            for key in model_names(self._models):
                self._drop_superseded(key)
            self._references.drop(lambda key: not (self._models / key).is_dir())

    def _sweep_one(self, name: str) -> None:
        if match := _TEMPORARY.fullmatch(name):
            lock = try_lock(key_lock(self._models, match[1]), Hold.EXCLUSIVE)
            if lock is not None:
                with lock:
                    sweep(self._models, name=match[1])
        elif name.startswith(PROBE_PREFIX):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - (self._models / name).stat().st_mtime > OLD_PROBE_SECONDS:
                    (self._models / name).unlink()

    def _drop_superseded(self, key: str) -> None:
        with contextlib.suppress(ModelNotFound, ModelBusy, StoreDamaged):
            record = ModelDirectory.read(self._models / key).record
            found = None if record.directory is None else self._references.find(record.reference)
            if found is not None and found.key != key:
                take_away(self._models, key)

    def _look_through(self) -> Iterator[tuple[str, StoredModel | StoreError]]:
        with explained("list the models"):
            keys = model_names(self._models)
        for key in keys:
            try:
                yield key, self.open_key(key)
            except ModelNotFound:
                continue
            except StoreError as error:
                yield key, error

    def _find(self, key: str) -> StoredModel | None:
        try:
            return self._open(key)
        except (ModelNotFound, StoreDamaged):
            return None

    def _open(self, key: str) -> StoredModel:
        if not is_key(key):
            raise removed(Path(key[:100]))
        model = StoredModel(ModelDirectory.read(self._models / key))
        model.index  # noqa: B018
        return model


def _nothing() -> None:
    """Who evicts does so to its end."""
