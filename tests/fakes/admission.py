"""An admission whose every decision the test makes."""

import asyncio

from headrace_server.domain import Demand, EngineCapacity, EngineRequest
from headrace_server.engine.base import Engine
from headrace_server.errors import RequestError
from headrace_server.queueing import Outlook
from headrace_server.serving.admission import Occupant, Turn, at_once


class FakeAdmission:
    """An `Admission`.

    Attributes:
        is_open: whoever joins is let in at once; else he waits for `let_in` or `refuse`.
        door_error, join_error: raised at the door; what everybody is told who joins.
        places: all that were given, in order.
        entered: set while somebody waits for his turn.
        withdrawn: set once somebody who waited has gone.
    """

    def __init__(self, *, is_open: bool = True) -> None:
        self.is_open = is_open
        self.door_error: RequestError | None = None
        self.join_error: RequestError | None = None
        self.places: list[FakePlace] = []
        self.entered = asyncio.Event()
        self.withdrawn = asyncio.Event()

    def enter(self, request: EngineRequest, occupant: Occupant) -> "FakePlace":
        if self.door_error is not None:
            raise self.door_error
        self.places.append(FakePlace(self, request, occupant))
        return self.places[-1]

    @property
    def num_joins(self) -> int:
        """How often somebody has asked for his turn."""
        return sum(len(place.demands) for place in self.places)

    @property
    def num_waiting(self) -> int:
        """Who waits for his turn."""
        return sum(place.is_waiting for place in self.places)

    @property
    def num_tickets(self) -> int:
        """Who has been let in and is not over."""
        return sum(place.is_in for place in self.places)

    def let_in(self) -> None:
        """Admit whoever came first."""
        self._settle(None)

    def refuse(self, error: RequestError) -> None:
        """Turn away whoever came first."""
        self._settle(error)

    def _settle(self, refusal: RequestError | None) -> None:
        next(place for place in self.places if place.is_waiting).settle(refusal)


class FakePlace:
    """A `Place`.

    Attributes:
        demands: of every join.
        boarded: the engines that it was told of.
        said: what the engine said, `(computed, cached)` of prompts and numbers of tokens.
        num_returns, num_losses: how often it went back, and how often for want of an engine.
        expected: what `outlook` says while it waits.
        is_in: it has been let in and is not over.
        is_over: it has left.
    """

    def __init__(self, admission: FakeAdmission, request: EngineRequest, occupant: Occupant) -> None:
        self.request = request
        self.occupant = occupant
        self.demands: list[Demand] = []
        self.boarded: list[tuple[Engine, EngineCapacity]] = []
        self.said: list[tuple[int, int] | int] = []
        self.num_returns = 0
        self.num_losses = 0
        self.expected: Outlook | None = None
        self.is_in = False
        self.is_over = False
        self.is_favoured = False
        self.waited_seconds: float | None = None
        self._admission = admission
        self._turn: Turn | None = None

    @property
    def queue_seconds(self) -> float | None:
        return self.waited_seconds

    @property
    def is_waiting(self) -> bool:
        return self._turn is not None and not self._turn.done()

    def settle(self, refusal: RequestError | None) -> None:
        """The wait is over."""
        assert self._turn is not None
        self.is_in = refusal is None
        self._turn.set_result(refusal)

    def board(self, engine: Engine, capacity: EngineCapacity) -> None:
        self.boarded.append((engine, capacity))

    def join(self, demand: Demand) -> Turn:
        assert not self.is_over
        assert not self.is_in, "it was let in and joins again"
        self.demands.append(demand)
        self._turn = asyncio.get_running_loop().create_future()
        if self._admission.join_error is not None:
            self.settle(self._admission.join_error)
        elif self._admission.is_open:
            self.is_in = True
            return at_once()
        self._admission.entered.set()
        return self._turn

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        self.said.append((num_computed_tokens, num_cached_tokens))

    def generated(self, num_tokens: int) -> None:
        self.said.append(num_tokens)

    def go_back(self) -> None:
        assert not self.is_over
        self.num_returns += 1
        self._free()

    def lose_engine(self) -> None:
        assert not self.is_over
        self.num_losses += 1
        self._free()

    def outlook(self) -> Outlook | None:
        return self.expected if self.is_waiting else None

    def leave(self) -> None:
        self.is_over = True
        self._free()

    def _free(self) -> None:
        turn, self._turn, self.is_in = self._turn, None, False
        if turn is not None and (turn.cancelled() or not turn.done()):
            self._admission.withdrawn.set()
