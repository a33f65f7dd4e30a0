"""The virtual rows of bench-fair, short: what the request batcher promises, on the server's own parts.

Everything is exact, so the bounds are those of the benchmark. What only a long run shows is left to it.
"""

import asyncio

import pytest

from headrace_server.domain import Tenant, TenantId
from loadtests.fair import flood, shares
from loadtests.fair.comebacks import measure_burst, measure_stampede
from loadtests.fair.deadlines import measure_deadlines
from loadtests.fair.disconnects import measure_disconnects
from loadtests.fair.findings import Findings
from loadtests.fair.loads import Ask, Due
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_loop import StandsStill, run_virtually
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually

TINY = Scale(seconds=40.0, num_requests=20, num_disconnects=100)
ASK = Ask("one", 64, 8)


def missed(findings: Findings) -> list[str]:
    """Lines whose target was missed."""
    return [f"{line.title}: {line.found.value}" for line in findings.lines if line.met is False]


def test_tenants_of_equal_weight_get_equal_shares_however_many_keys_one_of_them_has() -> None:
    assert missed(shares.measure_keys(TINY)) == []


def test_weights_are_kept() -> None:
    assert missed(shares.measure_weights(TINY)) == []


def test_who_returns_gets_its_share_and_no_more() -> None:
    assert all(line.found.value > 0.95 for line in shares.measure_return(TINY).lines)


def test_clients_that_come_back_as_told_are_served() -> None:
    assert missed(measure_burst(TINY)) == []


def test_clients_that_all_come_back_at_once_are_served_or_refused() -> None:
    assert missed(measure_stampede(TINY)) == []


def test_nothing_is_begun_after_its_deadline() -> None:
    assert missed(measure_deadlines(TINY)) == []


def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    assert missed(measure_disconnects(TINY)) == []


def test_a_flood_of_requests_delays_a_light_tenant_far_less_than_first_come_first_served_does() -> None:
    setup = Setup(weights={flood.LIGHT: 1.0, flood.FLOOD: 1.0})
    ours, theirs = (flood.run_flood(each, "requests", TINY).p99_seconds for each in (setup, first_come(setup)))
    assert ours < theirs / 5


# ------------------------------------------------------------------------------------------------ the instruments


@pytest.mark.parametrize("setup", [Setup(), first_come(Setup())])
def test_a_request_alone_takes_the_time_of_its_steps(setup: Setup) -> None:
    answer = virtually(setup, lambda server: server.ask(ASK))
    engine = setup.engine
    prefill = engine.step_seconds(num_decoding=0, num_prompt_tokens=64)
    assert answer.ttft_seconds == pytest.approx(prefill)
    assert answer.tpot_seconds == pytest.approx(engine.step_seconds(num_decoding=1, num_prompt_tokens=0))


def test_service_is_what_the_engine_did_for_whom() -> None:
    async def work(server: VirtualServer) -> tuple[float, float]:
        before = server.now()
        await server.ask(ASK)
        await server.ask(Ask("other", 10, 1))
        service = server.witness.service
        return service.between("one", before, server.now() + 1), service.between("other", before, server.now() + 1)

    assert virtually(Setup(), work) == (64 + 2 * 8, 10 + 2 * 1)


def test_what_is_under_way_when_a_load_ends_is_withdrawn_and_holds_nothing() -> None:
    async def work(server: VirtualServer) -> tuple[bool, dict[str, int]]:
        load = [Due(0.0, Ask("one", 64, 500))] * 3
        answers = await server.open_loop(load, most_seconds=1.0)
        return any(answer.is_complete for answer in answers), server.held()

    is_any_complete, held = virtually(Setup(), work)
    assert not is_any_complete
    assert set(held.values()) == {0}


def test_weights_of_a_setup_are_its_tenants() -> None:
    tenants = Setup(weights={"a": 1.0, "b": 4.0}).tenants()
    assert tenants.tenant(TenantId("b")) == Tenant(TenantId("b"), weight=4.0, queue_share=0.5)


def test_a_loop_on_which_nothing_will_happen_says_so() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StandsStill, match="for ever"):
        run_virtually(waits())
