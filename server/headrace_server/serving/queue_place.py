"""One request's place in a model's queue, from the door to its end.

Keeps the request's turn and its account; what follows for the others is the queue's. Plain calls on the event loop.
"""

import asyncio
from typing import TYPE_CHECKING

from headrace_server.domain import Demand, EngineCapacity, EngineRequest
from headrace_server.engine.base import Engine
from headrace_server.errors import RequestError
from headrace_server.queueing import Outlook, RefusalReason, Stage, TicketId
from headrace_server.serving.accounts import Account
from headrace_server.serving.admission import Occupant, Turn

if TYPE_CHECKING:
    from headrace_server.serving.model_queue import ModelQueue


class QueuePlace:
    """One request's place in a queue; see `admission.Place`.

    Attributes:
        stage: where the request stands, as its policy was told.
        engine: the one that it has a lease on.
        is_favoured: see `domain.Seat`.
    """

    def __init__(
        self, queue: "ModelQueue", ticket: TicketId, request: EngineRequest, occupant: Occupant, account: Account
    ) -> None:
        self.ticket = ticket
        self.stage = Stage.AT_THE_DOOR
        self.engine: Engine | None = None
        self.is_favoured = False
        self.request_id = request.request_id
        self.service_class = request.service_class
        self._queue = queue
        self._occupant = occupant
        self._account = account
        self._turn: Turn | None = None
        self._num_sequences = 1
        self._joined_at = 0.0
        self._is_over = False

    @property
    def queue_seconds(self) -> float | None:
        """See `Place.queue_seconds`; a wait that goes on is counted."""
        waited = self._account.queue_seconds
        if self.stage is not Stage.WAITING:
            return waited
        return (waited or 0.0) + self._queue.now() - self._joined_at

    def board(self, engine: Engine, capacity: EngineCapacity) -> None:
        """See `Place.board`."""
        self.engine = engine
        self._queue.board(engine, capacity)

    def join(self, demand: Demand) -> Turn:
        """See `Place.join`."""
        turn = self._turn = asyncio.get_running_loop().create_future()
        self._num_sequences = demand.num_sequences
        if self.stage is Stage.AT_THE_DOOR:
            self._joined_at = self._queue.now()
        self._queue.join(self, demand)
        return turn

    def admit(self, *, is_favoured: bool) -> None:
        """Its turn has come."""
        self.is_favoured = is_favoured
        now = self._queue.now()
        self._account.admitted(now - self._joined_at, now, num_sequences=self._num_sequences)
        self.settle(None)

    def refuse(self, reason: RefusalReason, error: RequestError) -> None:
        """It is not served, or no longer."""
        self._account.count_refusal(reason)
        if not self.settle(error):
            self._occupant.cut(error)

    def settle(self, refusal: RequestError | None) -> bool:
        """Its wait is over. Returns whether anybody waited."""
        turn, self._turn = self._turn, None
        if turn is None or turn.done():
            return False
        turn.set_result(refusal)
        return True

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `domain.Seat.began`."""
        now = self._queue.now()
        self._account.began(num_computed_tokens, num_cached_tokens, now)
        self._queue.began(self, num_computed_tokens, num_cached_tokens, now)

    def generated(self, num_tokens: int) -> None:
        """See `domain.Seat.generated`."""
        now = self._queue.now()
        self._account.generated(num_tokens, now)
        self._queue.generated(self, num_tokens, now)

    def preempt(self) -> None:
        """It gives way to others."""
        self._account.count_preemption()
        self._occupant.restart()

    def go_back(self) -> None:
        """See `Place.go_back`."""
        self._turn = None
        self._account.sent_back(self._queue.now())
        self._queue.go_back(self)

    def lose_engine(self) -> None:
        """See `Place.lose_engine`."""
        self.go_back()
        self._queue.lose_engine(self.engine)

    def outlook(self) -> Outlook | None:
        """See `Place.outlook`."""
        return self._queue.outlook(self)

    def leave(self) -> None:
        """See `Place.leave`."""
        if self._is_over:
            return
        self._is_over = True
        self._queue.leave(self)
        self._account.close(self._queue.now())
