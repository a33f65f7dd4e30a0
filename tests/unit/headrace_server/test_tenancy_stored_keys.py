"""The keys of a store in a running server."""

import hmac
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.errors import Unauthenticated, UsageError
from headrace_server.tenancy.callers import Callers
from headrace_server.tenancy.key_store import KeyStore, NewKey
from headrace_server.tenancy.keys import EVERYONE, KeyList
from headrace_server.tenancy.stored_keys import StoredKeys

LISTED = "a-listed-key-0123456789"


@dataclass(slots=True)
class House:
    """A store, a server's view of it, and the time."""

    folder: Path
    now: float = 1000.0
    store: KeyStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = KeyStore(self.folder)

    def opened(self) -> StoredKeys:
        return StoredKeys(self.store, now=lambda: self.now, monotonic=lambda: self.now)

    def made(self, tenant: str = "a", *, lifetime_seconds: int | None = None) -> str:
        return self.store.create(NewKey(TenantId(tenant), lifetime_seconds=lifetime_seconds), int(self.now))[0]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "state")


def test_a_key_brings_its_tenant_and_scopes(house: House) -> None:
    key = house.made("team")
    caller = house.opened().find(key)
    assert caller == Caller(TenantId("team"), frozenset({Scope.INFERENCE}), key[:11])


def test_new_and_revoked_keys_count_within_a_second(house: House) -> None:
    first = house.made()
    keys = house.opened()
    second = house.made()
    house.now += 1
    assert keys.find(first)
    assert keys.find(second)
    house.store.revoke(first[:11], int(house.now))
    house.now += 1
    assert keys.find(first) is None
    assert keys.find(second)


def test_a_key_expires_by_itself(house: House) -> None:
    key = house.made(lifetime_seconds=60)
    keys = house.opened()
    house.now += 59
    assert keys.find(key)
    house.now += 1
    assert keys.find(key) is None


def test_every_key_is_compared_also_after_one_has_fitted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [house.made() for _ in range(3)]
    keys = house.opened()
    compared: list[bytes] = []
    hmac_compare = hmac.compare_digest

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(theirs)
        return hmac_compare(ours, theirs)

    monkeypatch.setattr("headrace_server.tenancy.stored_keys.hmac.compare_digest", compare)
    for presented in (made[0], made[2], "wrong", ""):
        compared.clear()
        keys.find(presented)
        assert compared == [record.digest for record in house.store.records()]


def test_a_store_that_breaks_or_goes_keeps_what_it_had(house: House) -> None:
    key = house.made()
    keys = house.opened()
    for harm in (lambda: house.store.keys_path.write_text("{"), house.store.keys_path.unlink):
        harm()
        house.now += 1
        assert keys.find(key)
        assert keys.is_there


def test_a_store_without_its_pepper_does_not_open_the_server(house: House) -> None:
    house.made()
    house.store.pepper_path.unlink()
    with pytest.raises(UsageError, match="pepper is missing"):
        house.opened()


class TestTheDoor:
    """One door for all sources; see `Callers`."""

    def door(self, house: House, *, listed: bool = False) -> Callers:
        return Callers([KeyList([LISTED])] if listed else [], house.opened(), always=listed)

    def test_nobody_needs_a_key_until_the_first_one_is_made(self, house: House) -> None:
        door = self.door(house)
        assert door.authenticate(None) == EVERYONE
        key = house.made()
        house.now += 1
        assert door.authenticate(key).tenant == "a"
        with pytest.raises(Unauthenticated):
            door.authenticate(None)

    def test_revoking_the_last_key_opens_nothing(self, house: House) -> None:
        key = house.made()
        house.store.revoke(key[:11], 0)
        for door in (self.door(house), self.door(house, listed=True)):
            assert door.are_needed
            for presented in (None, "", key):
                with pytest.raises(Unauthenticated):
                    door.authenticate(presented)

    def test_keys_of_all_sources_open(self, house: House) -> None:
        key = house.made()
        door = self.door(house, listed=True)
        assert door.authenticate(LISTED) == EVERYONE
        assert door.authenticate(key).tenant == "a"

    def test_without_any_source_and_always_nobody_gets_in(self) -> None:
        with pytest.raises(Unauthenticated):
            Callers([], None, always=True).authenticate("anything")

    def test_every_refusal_is_the_same(self, house: House) -> None:
        door = self.door(house, listed=True)
        revoked, expired = house.made(), house.made(lifetime_seconds=1)
        house.store.revoke(revoked[:11], 0)
        house.now += 5
        seen = set()
        for presented in (
            None,
            "",
            revoked,
            expired,
            LISTED[:-1],
            LISTED.upper(),
            f"{LISTED} {LISTED}",
            "hr-",
            "a.b.c",
        ):
            with pytest.raises(Unauthenticated) as caught:
                door.authenticate(presented)
            seen.add((caught.value.message, caught.value.code, caught.value.param, caught.value.retry_after_seconds))
        assert len(seen) == 1
