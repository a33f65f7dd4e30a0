"""The keys of a store, as a running server knows them: new, revoked and expired ones count within a second."""

import hmac
import time
from collections.abc import Callable

from headrace_server.domain import Caller
from headrace_server.errors import UsageError
from headrace_server.tenancy.key_records import digest_of
from headrace_server.tenancy.key_store import KeySet, KeyStore
from headrace_server.tenancy.reloading import Reloaded


class StoredKeys:
    """Callers by the keys of `store`.

    Args:
        now: seconds since the epoch.
        monotonic: seconds on a clock that never goes back.

    Raises:
        UsageError: there is a store and it cannot be used.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._now = now
        self._was_there = False
        self._keys = Reloaded((store.keys_path, store.pepper_path), self._read, monotonic=monotonic)

    @property
    def is_there(self) -> bool:
        """Whether a key was ever made, be it a revoked one; never turns false again while the server runs."""
        return self._keys.current() is not None

    def find(self, presented: str) -> Caller | None:
        """See `CallerSource`."""
        keys = self._keys.current()
        if keys is None:
            return None
        digest, now = digest_of(presented, keys.pepper), self._now()
        found = [record for record in keys.records if hmac.compare_digest(digest, record.digest)]
        return next((record.caller for record in found if record.is_good(now)), None)

    def _read(self) -> KeySet | None:
        if self._store.exists:
            self._was_there = True
            return self._store.read()
        if self._was_there:
            raise UsageError(f"{self._store.keys_path} is gone")
        return None
