"""On what terms tenants are served, and what they may ask for."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import ServiceClass, Tenant, TenantId
from headrace_server.tenancy.keys import DEFAULT_TENANT
from headrace_server.tenancy.tenants import Tenants, allowed_class, default_queue_share
from headrace_server.tenancy.terms import Terms

INTERACTIVE, STANDARD, BATCH = ServiceClass
A, B = Tenant(TenantId("a"), weight=2.0, queue_share=0.25), Tenant(TenantId("b"))


def test_a_configured_tenant_has_its_terms_and_others_the_default_ones() -> None:
    tenants = Tenants([A, B])
    assert tenants.tenant(A.id) is A
    assert tenants.tenant(TenantId("c")) == Tenant(TenantId("c"), queue_share=0.5)
    assert [tenants.is_configured(TenantId(id)) for id in "abc"] == [True, True, False]


@pytest.mark.parametrize(("num_tenants", "share"), [(0, 1.0), (1, 1.0), (2, 0.5), (9, 0.5)])
def test_nobody_fills_the_queue_alone_where_there_are_several(num_tenants: int, share: float) -> None:
    assert default_queue_share(num_tenants) == share
    configured = [replace(A, id=TenantId(str(number))) for number in range(num_tenants)]
    assert Tenants(configured).tenant(DEFAULT_TENANT).queue_share == share


CLASSES = [frozenset(some) for size in (1, 2, 3) for some in combinations(ServiceClass, size)]


@pytest.mark.parametrize(
    ("asked", "allowed", "given"),
    [
        (INTERACTIVE, {INTERACTIVE, STANDARD, BATCH}, INTERACTIVE),
        (INTERACTIVE, {STANDARD, BATCH}, STANDARD),
        (INTERACTIVE, {BATCH}, BATCH),
        (STANDARD, {INTERACTIVE, BATCH}, BATCH),
        (BATCH, {INTERACTIVE, STANDARD}, STANDARD),
        (BATCH, {INTERACTIVE}, INTERACTIVE),
    ],
)
def test_a_class_that_is_not_allowed_becomes_a_lesser_one(
    asked: ServiceClass, allowed: set[ServiceClass], given: ServiceClass
) -> None:
    assert allowed_class(asked, frozenset(allowed)) is given


@given(st.sampled_from(ServiceClass), st.sampled_from(CLASSES))
def test_a_class_is_never_outside_what_is_allowed_nor_better_than_needed(
    asked: ServiceClass, allowed: frozenset[ServiceClass]
) -> None:
    given = allowed_class(asked, allowed)
    assert given in allowed
    if any(one.rank >= asked.rank for one in allowed):
        assert given.rank >= asked.rank


def test_a_request_that_names_no_class_has_the_default_one_as_far_as_its_tenant_may() -> None:
    terms = Terms(default_class=INTERACTIVE)
    assert terms.service_class(A, None) is INTERACTIVE
    assert terms.service_class(A, BATCH) is BATCH
    assert terms.service_class(replace(A, classes=frozenset({BATCH})), None) is BATCH


class TestCacheSalts:
    """What keeps tenants' prefix-cache blocks apart."""

    def test_each_tenant_has_its_own_and_always_the_same(self) -> None:
        terms = Terms(salt_key=b"k" * 32)
        salts = [terms.cache_salt(TenantId(id)) for id in ("a", "b", "a")]
        assert salts[0] == salts[2] != salts[1]
        assert all(salt and len(salt) == 32 for salt in salts)

    def test_nobody_can_compute_them_without_the_secret(self) -> None:
        salts = {Terms(salt_key=key).cache_salt(A.id) for key in (b"k" * 32, b"l" * 32)}
        assert len(salts) == 2
        assert "kkkk" not in repr(Terms(salt_key=b"k" * 32))

    def test_who_names_no_tenant_shares_one_cache_and_all_do_where_that_is_set(self) -> None:
        assert Terms(salt_key=b"k" * 32).cache_salt(DEFAULT_TENANT) is None
        assert Terms().cache_salt(A.id) is None
