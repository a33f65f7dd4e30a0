"""How requests and tenants are shown to people."""

from headrace_server.queueing import Outlook, TenantView, TicketView
from headrace_server.scheduling.costs import TokenWeights
from headrace_server.scheduling.fair_queue import Entry, TenantBooks


def ticket_view(entry: Entry, outlook: Outlook | None = None, why: str = "") -> TicketView:
    """One request; `outlook` and `why` of one that waits."""
    return TicketView(
        ticket=entry.ticket,
        tenant=entry.arrival.tenant,
        service_class=entry.arrival.service_class,
        stage=entry.stage,
        since=entry.since,
        num_prompt_tokens=None if entry.demand is None else entry.demand.num_prompt_tokens,
        num_output_tokens=entry.num_output_tokens,
        deadline=entry.arrival.deadline,
        position=None if outlook is None else outlook.position,
        wait_seconds=None if outlook is None else outlook.wait_seconds,
        why=why,
    )


def tenant_view(tenant: TenantBooks, weights: TokenWeights) -> TenantView:
    """One tenant; its counter is that of the most urgent class in which it waits, or of the standard one."""
    flow = next((flow for flow in tenant.flows if flow.entries), tenant.flows[1])
    return TenantView(
        tenant=tenant.terms.id,
        weight=tenant.terms.weight,
        num_waiting=tenant.num_waiting,
        num_running=tenant.num_running,
        virtual_tokens=flow.virtual_tokens,
        served_tokens=tenant.served(weights),
    )
