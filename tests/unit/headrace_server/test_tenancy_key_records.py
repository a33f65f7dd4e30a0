"""What a key looks like, and what is stored of it."""

import json
import re

import pytest

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.tenancy.key_records import KeyRecord, digest_of, new_key, parsed, written

PEPPER = bytes(range(32))


def record(**fields: object) -> KeyRecord:
    known: dict[str, object] = {
        "id": "abcdefgh",
        "digest": b"\x01" * 32,
        "tenant": TenantId("a"),
        "scopes": frozenset({Scope.INFERENCE, Scope.ADMIN}),
        "created": 100,
    }
    return KeyRecord(**{**known, **fields})  # type: ignore[arg-type]


def test_a_key_names_itself_and_holds_256_random_bits() -> None:
    id, key = new_key([])
    assert re.fullmatch(rf"hr-{id}-[A-Za-z0-9_-]{{43}}", key)
    assert re.fullmatch("[a-z2-9]{8}", id)
    assert len({new_key([])[1] for _ in range(100)}) == 100


def test_an_id_that_is_taken_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = iter("aaaaaaaabbbbbbbb")
    monkeypatch.setattr("headrace_server.tenancy.key_records.secrets.choice", lambda _alphabet: next(letters))
    assert new_key(["aaaaaaaa"])[0] == "bbbbbbbb"


def test_the_digest_depends_on_the_key_and_on_the_pepper() -> None:
    assert digest_of("k", PEPPER) == digest_of("k", PEPPER)
    assert len({digest_of("k", PEPPER), digest_of("l", PEPPER), digest_of("k", PEPPER[::-1])}) == 3
    assert digest_of("\udc80", PEPPER)


@pytest.mark.parametrize(
    ("fields", "is_good"),
    [
        ({}, True),
        ({"expires": 201}, True),
        ({"expires": 200}, False),
        ({"revoked": 150}, False),
        ({"revoked": 150, "expires": 500}, False),
    ],
)
def test_a_key_opens_until_it_expires_or_is_revoked(fields: dict[str, object], is_good: bool) -> None:
    assert record(**fields).is_good(200) is is_good


def test_records_are_read_as_they_were_written() -> None:
    records = (record(), record(id="b", name="laptop ü", expires=5, revoked=7, scopes=frozenset({Scope.GATEWAY})))
    assert parsed(written(records)) == records
    assert parsed(written([])) == ()


def test_a_record_shows_neither_key_nor_digest() -> None:
    _, key = new_key([])
    shown = record(digest=digest_of(key, PEPPER))
    assert key.encode() not in written([shown])
    assert "digest" not in repr(shown)


def test_the_caller_behind_a_key_is_named_by_its_id() -> None:
    caller = record().caller
    assert caller == Caller(TenantId("a"), frozenset({Scope.INFERENCE, Scope.ADMIN}), "hr-abcdefgh")


def document(**fields: object) -> bytes:
    (known,) = json.loads(written([record()]))["keys"]
    return json.dumps({"version": 1, "keys": [{**known, **fields}]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 2, "keys": []}',
        b'{"version": 1}',
        b'{"version": 1, "keys": [{}]}',
        b'{"version": 1, "keys": ["x"]}',
        b"\xff",
        b"[" * 100_000,
        document(digest="zz"),
        document(digest=None),
        document(scopes=["root"]),
        document(scopes=None),
        document(expires="tomorrow"),
        document(revoked="no"),
    ],
)
def test_what_is_no_store_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words
        parsed(content)
