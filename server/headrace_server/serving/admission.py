"""The seat for admission: every request takes one ticket before its engine works for it, and gives it back.

An engine takes the seat that it is handed once it knows what the request costs and before anything else happens, so
that whoever decides about the order decides before a header is out. `OpenAdmission` lets everyone in at once.
"""

import asyncio
from typing import Protocol

from headrace_server.domain import Demand, EngineRequest
from headrace_server.errors import RequestError


class Ticket(Protocol):
    """A request that was admitted."""

    def release(self) -> None:
        """The request is over, however it ended. Called once."""


class Admission(Protocol):
    """Decides who is served, and when."""

    async def admit(self, request: EngineRequest, demand: Demand) -> Ticket:
        """Return when the request's turn has come. Cancelling the call withdraws it.

        Raises:
            Contended, Unavailable, DeadlineExpired: it will not be served.
        """


class OpenAdmission:
    """Admits every request at once. `num_tickets` are out: admitted and not yet over."""

    def __init__(self) -> None:
        self.num_tickets = 0

    async def admit(self, request: EngineRequest, demand: Demand) -> "_CountedTicket":
        """See `Admission.admit`."""
        return _CountedTicket(self)


class _CountedTicket:
    def __init__(self, admission: OpenAdmission) -> None:
        self._admission = admission
        admission.num_tickets += 1

    def release(self) -> None:
        self._admission.num_tickets -= 1


class RequestSeat:
    """The `domain.Seat` of one request: asks admission once, whoever and how many ask for it."""

    def __init__(self, admission: Admission, request: EngineRequest) -> None:
        self._admission = admission
        self._request = request
        self._ticket: Ticket | None = None
        self._asking = asyncio.Lock()
        self._is_over = False
        self._refusal: RequestError | None = None

    async def take(self, demand: Demand) -> None:
        """See `domain.Seat.take`."""
        async with self._asking:
            if self._ticket is not None:
                return
            if self._refusal is not None:
                raise self._refusal
            if self._is_over:
                raise asyncio.CancelledError
            try:
                ticket = await self._admission.admit(self._request, demand)
            except RequestError as error:
                self._refusal = error
                raise
            if self._is_over:
                ticket.release()
                raise asyncio.CancelledError
            self._ticket = ticket

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `domain.Seat.began`."""

    def generated(self, num_tokens: int) -> None:
        """See `domain.Seat.generated`."""

    def release(self) -> None:
        """Give the ticket back, if there is one; a second call does nothing."""
        self._is_over = True
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.release()
