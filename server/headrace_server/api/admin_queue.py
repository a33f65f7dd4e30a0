"""`/admin/queue`: who waits for an engine, behind whom and why.

Requests are named by their ids; nothing is said of their contents and keys.
"""

from pydantic import BaseModel

from headrace_server.api.dependencies import RuntimeDep
from headrace_server.api.routes import AdminRoute, guarded_router
from headrace_server.domain import ServiceClass
from headrace_server.queueing import Stage, TenantView, TicketView
from headrace_server.serving.model_queue import ModelQueueView

router = guarded_router("admin", AdminRoute)


class QueuedRequest(BaseModel):
    """A request that has come and is not over.

    `seconds`: since it came. `why` says what it waits for. Null are `num_prompt_tokens` before it has been tokenised,
    `deadline_seconds` (until then) without a deadline, `position` and `wait_seconds` (until it is let in) unless it
    waits, the latter also where nothing is known yet.
    """

    id: str
    tenant: str
    service_class: ServiceClass
    stage: Stage
    seconds: float
    num_prompt_tokens: int | None
    num_output_tokens: int
    deadline_seconds: float | None
    position: int | None
    wait_seconds: float | None
    why: str


class QueuedTenant(BaseModel):
    """A tenant that has requests here. The one with the lowest `virtual_tokens` is served next; `served_tokens` is what
    it was charged since the engine started."""

    id: str
    weight: float
    num_waiting: int
    num_running: int
    virtual_tokens: float
    served_tokens: float


class AdminQueue(BaseModel):
    """The queue before one model's engine. Null are `slot_limit`, the sequences that are let in at present, where there
    is no bound, and `tokens_per_second`, what the engine has been doing lately, while nothing is known."""

    model: str
    slot_limit: int | None
    num_sequences_running: int
    tokens_per_second: float | None
    tenants: list[QueuedTenant]
    requests: list[QueuedRequest]


class AdminQueues(BaseModel):
    """Every model that has been asked for."""

    models: list[AdminQueue]


@router.get("/admin/queue", summary="Queues: who waits behind whom, and why")
async def list_queues(runtime: RuntimeDep) -> AdminQueues:
    return AdminQueues(models=[queue_document(view) for view in runtime.queues()])


def queue_document(view: ModelQueueView) -> AdminQueue:
    """A queue as it is shown: who waits, in their order, before those who run and those who have just come."""
    queue = view.queue
    return AdminQueue(
        model=view.model,
        slot_limit=queue.slot_limit,
        num_sequences_running=queue.num_sequences_running,
        tokens_per_second=queue.tokens_per_second,
        tenants=[_tenant(tenant) for tenant in queue.tenants],
        requests=[_request(ticket, view) for ticket in sorted(queue.tickets, key=_order)],
    )


def _order(ticket: TicketView) -> tuple[bool, int, float]:
    return ticket.position is None, ticket.position or 0, ticket.since


def _request(ticket: TicketView, view: ModelQueueView) -> QueuedRequest:
    return QueuedRequest(
        id=view.request_ids[ticket.ticket],
        tenant=ticket.tenant,
        service_class=ticket.service_class,
        stage=ticket.stage,
        seconds=view.now - ticket.since,
        num_prompt_tokens=ticket.num_prompt_tokens,
        num_output_tokens=ticket.num_output_tokens,
        deadline_seconds=None if ticket.deadline is None else ticket.deadline - view.now,
        position=ticket.position,
        wait_seconds=ticket.wait_seconds,
        why=ticket.why,
    )


def _tenant(tenant: TenantView) -> QueuedTenant:
    return QueuedTenant(
        id=tenant.tenant,
        weight=tenant.weight,
        num_waiting=tenant.num_waiting,
        num_running=tenant.num_running,
        virtual_tokens=tenant.virtual_tokens,
        served_tokens=tenant.served_tokens,
    )
