"""Who may call: one door for keys of a file, keys of the store, and tokens."""

from collections.abc import Sequence

from headrace_server.domain import Caller
from headrace_server.tenancy.keys import EVERYONE, CallerSource, refusal
from headrace_server.tenancy.stored_keys import StoredKeys


class Callers:
    """The `Authenticator` of a server that may ask for keys.

    Args:
        sources: who is asked beside the store, all of them every time.
        stored: the store of keys; None: none is used.
        always: a key is needed even while the store has never had one.
    """

    def __init__(self, sources: Sequence[CallerSource], stored: StoredKeys | None, *, always: bool) -> None:
        self._sources = (*sources, stored) if stored is not None else tuple(sources)
        self._stored = stored
        self._always = always

    @property
    def are_needed(self) -> bool:
        """Whether nobody gets in without a key."""
        return self._always or (self._stored is not None and self._stored.is_there)

    def authenticate(self, presented: str | None) -> Caller:
        """See `Authenticator`."""
        if not self.are_needed:
            return EVERYONE
        found = [source.find(presented or "") for source in self._sources]
        caller = next((caller for caller in found if caller is not None), None)
        if caller is None:
            raise refusal()
        return caller
