"""The body of an empty range, which no protocol can ask for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmptyBody:
    """See Body; nothing at `begin`."""

    begin: int

    @property
    def end(self) -> int:
        """See Body."""
        return self.begin

    def read(self, max_bytes: int) -> bytes:
        """See Body."""
        return b""
