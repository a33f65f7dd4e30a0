"""Tokens per minute: what was used is refused until it has come back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import TenantId
from headrace_server.errors import QuotaExceeded
from headrace_server.tenancy.quotas import Quotas

A, B, FREE = TenantId("a"), TenantId("b"), TenantId("free")


def quotas() -> Quotas:
    return Quotas({A: 600, B: 60})


def refused(quotas: Quotas, tenant: TenantId, now: float) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        quotas.check(tenant, now)
    return caught.value


def wait_of(refusal: QuotaExceeded) -> float:
    assert refusal.retry_after_seconds is not None
    return refusal.retry_after_seconds


def test_a_minutes_worth_may_be_used_at_once_and_comes_back_evenly() -> None:
    bucket = quotas()
    bucket.check(A, 0)
    bucket.spend(A, 600, 0)
    refusal = refused(bucket, A, 0)
    assert (refusal.limit_tokens, refusal.remaining_tokens) == (600, 0)
    assert refusal.retry_after_seconds == pytest.approx(0.1)
    assert refusal.reset_seconds == pytest.approx(60)
    bucket.check(A, 0.1)


def test_who_comes_back_as_told_is_let_in_and_not_sooner() -> None:
    bucket = quotas()
    bucket.spend(A, 1000, 5)
    wait = wait_of(refused(bucket, A, 5))
    assert wait == pytest.approx(40.1)
    refused(bucket, A, 5 + wait * 0.99)
    bucket.check(A, 5 + wait + 1e-9)


def test_a_debt_of_many_minutes_is_told_as_a_wait_that_sdks_keep_to() -> None:
    bucket = quotas()
    bucket.spend(B, 100_000, 0)
    refusal = refused(bucket, B, 0)
    assert refusal.retry_after_seconds == 108
    assert refusal.reset_seconds == pytest.approx(100_000)


def test_what_is_not_used_is_not_saved_up() -> None:
    bucket = quotas()
    bucket.check(B, 0)
    bucket.spend(B, 61, 1e6)
    refused(bucket, B, 1e6)


def test_tenants_do_not_share_and_those_without_a_limit_pass() -> None:
    bucket = quotas()
    bucket.spend(A, 10_000, 0)
    bucket.spend(FREE, 10**9, 0)
    bucket.check(B, 0)
    bucket.check(FREE, 0)
    refused(bucket, A, 0)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = quotas()
    bucket.spend(A, 700, 100)
    refused(bucket, A, 100)
    refused(bucket, A, 50)
    refused(bucket, A, 110)  # 600 - 700 + 100: nothing yet
    bucket.check(A, 110.2)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500)), max_size=40))
def test_nobody_uses_more_than_the_limit_and_what_was_under_way(steps: list[tuple[float, int]]) -> None:
    bucket, now, used, last = quotas(), 0.0, 0, 0
    for elapsed, num_tokens in steps:
        now += elapsed
        with suppress(QuotaExceeded):
            bucket.check(A, now)
            bucket.spend(A, num_tokens, now)
            used, last = used + num_tokens, num_tokens
    assert used - last <= 600 + now * 10 + 1e-6
