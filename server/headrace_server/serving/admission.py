"""The seat for admission: every request has one place, from the door to its end, and its engine waits for it.

A request enters before anything is spent on it. Its engine takes the seat that it is handed once it knows what the
request costs and before anything else happens, so that whoever decides about the order decides before a header is out.
`OpenAdmission` lets everyone in at once.
"""

import asyncio
from typing import Protocol, TypeAlias

from headrace_server.domain import Demand, EngineCapacity, EngineRequest
from headrace_server.engine.base import Engine
from headrace_server.errors import RequestError
from headrace_server.queueing import Outlook

Turn: TypeAlias = "asyncio.Future[RequestError | None]"
"""Done once a request is admitted, or with why it is not."""


class Occupant(Protocol):
    """Who has a place: a request, which may be told to end or to begin again."""

    def cut(self, error: RequestError) -> None:
        """End now, with this error."""

    def restart(self) -> None:
        """Leave the engine, call `Place.go_back`, and join again."""


class Place(Protocol):
    """A request's place, from the door to its end. Plain calls on the event loop; none but `join` may be refused.

    `queue_seconds`: for how long it has waited for its turn; None: it never had to ask. `is_favoured`: see
    `domain.Seat`.
    """

    @property
    def is_favoured(self) -> bool: ...

    @property
    def queue_seconds(self) -> float | None: ...

    def board(self, engine: Engine, capacity: EngineCapacity) -> None:
        """It has a lease on this engine and will join the queue before it."""

    def join(self, demand: Demand) -> Turn:
        """It has been tokenised and waits for its turn."""

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `domain.Seat.began`."""

    def generated(self, num_tokens: int) -> None:
        """See `domain.Seat.generated`."""

    def go_back(self) -> None:
        """It is not in the engine any more, and will join again."""

    def lose_engine(self) -> None:
        """As `go_back`, because its engine is gone, for everybody else too."""

    def outlook(self) -> Outlook | None:
        """What it can expect; None: it does not wait."""

    def leave(self) -> None:
        """It is over, however that came about; a second call does nothing."""


class Admission(Protocol):
    """Decides who is served, and when."""

    def enter(self, request: EngineRequest, occupant: Occupant) -> Place:
        """A request comes to the door.

        Raises:
            Contended, DeadlineExpired: it will not be served.
        """


class OpenAdmission:
    """Admits every request at once. `num_tickets` are out: admitted and not yet over."""

    def __init__(self) -> None:
        self.num_tickets = 0

    def enter(self, request: EngineRequest, occupant: Occupant) -> "_OpenPlace":
        """See `Admission.enter`."""
        return _OpenPlace(self)


class _OpenPlace:
    is_favoured = False

    def __init__(self, admission: OpenAdmission) -> None:
        self._admission = admission
        self._is_in = False

    @property
    def queue_seconds(self) -> None:
        return None

    def board(self, engine: Engine, capacity: EngineCapacity) -> None:
        pass

    def join(self, demand: Demand) -> Turn:
        self._is_in = True
        self._admission.num_tickets += 1
        return at_once()

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        pass

    def generated(self, num_tokens: int) -> None:
        pass

    def go_back(self) -> None:
        self.leave()

    def lose_engine(self) -> None:
        self.leave()

    def outlook(self) -> None:
        return None

    def leave(self) -> None:
        self._admission.num_tickets -= self._is_in
        self._is_in = False


def at_once() -> Turn:
    """The turn of a request that need not wait."""
    turn: Turn = asyncio.get_running_loop().create_future()
    turn.set_result(None)
    return turn


class RequestSeat:
    """The `domain.Seat` of one request: joins once, whoever and how many ask for it.

    `is_taken`: it was admitted, and has not been sent back since.
    """

    def __init__(self, place: Place) -> None:
        self.is_taken = False
        self._place = place
        self._turn: Turn | None = None
        self._is_over = False

    @property
    def is_favoured(self) -> bool:
        """See `domain.Seat`."""
        return self._place.is_favoured

    async def take(self, demand: Demand) -> None:
        """See `domain.Seat.take`."""
        if self._is_over:
            raise asyncio.CancelledError
        turn = self._turn = self._turn or self._place.join(demand)
        refusal = turn.result() if turn.done() else await asyncio.shield(turn)
        if refusal is not None:
            raise refusal
        if turn is not self._turn:  # sent back meanwhile, or over
            raise asyncio.CancelledError
        self.is_taken = True

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `domain.Seat.began`."""
        self._place.began(num_computed_tokens, num_cached_tokens)

    def generated(self, num_tokens: int) -> None:
        """See `domain.Seat.generated`."""
        self._place.generated(num_tokens)

    def go_back(self) -> None:
        """See `Place.go_back`."""
        self._reset()
        self._place.go_back()

    def lose_engine(self) -> None:
        """See `Place.lose_engine`."""
        self._reset()
        self._place.lose_engine()

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        self._is_over = True
        self._reset()
        self._place.leave()

    def _reset(self) -> None:
        self.is_taken = False
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
