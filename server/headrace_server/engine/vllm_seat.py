"""A request's seat while vLLM works on the request, and what vLLM is told of the request's standing.

Which request the engine is asked for, the calling task's context says: vLLM's serving objects know nothing of seats.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from headrace_server.domain import Demand, EngineRequest, Seat
from headrace_server.engine.base import urgency
from headrace_server.errors import EngineFault, RequestError

_SALT = "cache_salt"


class SeatInUse:
    """The seat of `request`."""

    def __init__(self, seat: Seat, request: EngineRequest) -> None:
        self._seat = seat
        self._cache_salt = request.cache_salt
        self._request = request
        self.is_taken = False
        self.refusal: RequestError | None = None

    def use(self) -> None:
        """From here on, what the calling task and its children ask of the engine is asked for this seat."""
        _current.set(self)

    async def take(self, demand: Demand) -> None:
        """See `Seat.take`."""
        try:
            await self._seat.take(demand)
        except RequestError as error:
            self.refusal = error
            raise
        self.is_taken = True

    @property
    def priority(self) -> int:
        """vLLM's, once it is taken."""
        return urgency(self._request, self._seat)

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `Seat.began`."""
        self._seat.began(num_computed_tokens, num_cached_tokens)

    def generated(self, num_tokens: int) -> None:
        """See `Seat.generated`."""
        self._seat.generated(num_tokens)

    def salted(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """An input of vLLM's engine with this request's salt in the place of any other."""
        others = {name: value for name, value in prompt.items() if name != _SALT}
        return others if self._cache_salt is None else {**others, _SALT: self._cache_salt}


_current: ContextVar[SeatInUse | None] = ContextVar("seat_in_use", default=None)


def using_seat(seat: Seat, request: EngineRequest) -> SeatInUse:
    """From here on, what the calling task and its children ask of the engine is asked for this seat."""
    place = SeatInUse(seat, request)
    place.use()
    return place


def seat_in_use() -> SeatInUse | None:
    """The seat for which the calling task asks."""
    return _current.get()


def required_seat() -> SeatInUse:
    """The seat for which the calling task asks.

    Raises:
        EngineFault: there is none.
    """
    place = _current.get()
    if place is None:
        raise EngineFault("a request reached the engine without a seat")
    return place
