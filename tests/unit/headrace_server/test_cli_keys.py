"""`headrace keys …`: what is printed where, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from headrace_server.cli.keys import KeyWish, create_key, lifetime_seconds, print_keys, revoke_key, state_of
from headrace_server.domain import Scope, TenantId
from headrace_server.errors import UsageError
from headrace_server.tenancy.key_records import KeyRecord
from headrace_server.tenancy.key_store import KeyStore

INFERENCE = (Scope.INFERENCE,)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(folder: Path, **sections: object) -> Path:
    path = folder / "headrace.yaml"
    path.write_text(json.dumps({"server": {"state_dir": str(folder / "state")}, **sections}))
    return path


def wish(
    tenant: str = "a", scopes: tuple[Scope, ...] = INFERENCE, name: str = "", expires: str | None = None
) -> KeyWish:
    return KeyWish(tenant, scopes, name, expires)


def made(config: Path, capsys: pytest.CaptureFixture[str], wanted: KeyWish | None = None) -> tuple[str, str]:
    """The key and what was said of it."""
    capsys.readouterr()
    create_key(wanted or wish(), config)
    printed = capsys.readouterr()
    return printed.out.strip(), printed.err


def test_the_key_alone_is_on_standard_output(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, said = made(config, capsys, wish(scopes=(Scope.INFERENCE, Scope.ADMIN), expires="30d"))
    assert re.fullmatch(r"hr-[a-z2-9]{8}-[A-Za-z0-9_-]{43}", key)
    assert re.match(r"for tenant a, good until 20\d\d-\d\d-\d\d \d\d:\d\d, for admin,inference; it is not shown", said)
    assert key not in said


def test_the_first_key_closes_the_server_and_that_is_said_once(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "from now on nobody is served without a key"
    assert note in made(config, capsys)[1]
    assert note not in made(config, capsys)[1]


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        ({"auth": {"mode": "none"}}, r"auth\.mode is none"),
        ({"tenants": [{"id": "b"}]}, "no tenant a is configured"),
        ({"auth": {"mode": "keys"}, "tenants": [{"id": "a"}]}, None),
    ],
)
def test_what_the_configuration_makes_of_the_key_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, object], note: str | None
) -> None:
    _, said = made(written(tmp_path, **sections), capsys)
    notes = [line for line in said.splitlines() if line.startswith("headrace: ")]
    assert bool(notes) is (note is not None)
    assert note is None or re.search(note, said)


def test_the_list_shows_whose_keys_there_are_and_never_the_keys(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = made(config, capsys, wish(name="laptop"))
    second, _ = made(config, capsys, wish("b"))
    revoke_key(second[:11], config)
    capsys.readouterr()
    print_keys(config, as_json=False)
    printed = capsys.readouterr().out
    head, *rows = [line.split() for line in printed.splitlines()]
    assert head == ["KEY", "TENANT", "SCOPES", "STATE", "CREATED", "EXPIRES", "NAME"]
    assert [(row[0], row[1], row[3], row[-1]) for row in rows] == [
        (first[:11], "a", "good", "laptop"),
        (second[:11], "b", "revoked", "-"),
    ]
    print_keys(config, as_json=True)
    document = capsys.readouterr().out
    assert [(key["key"], key["state"]) for key in json.loads(document)] == [
        (first[:11], "good"),
        (second[:11], "revoked"),
    ]
    assert first not in printed + document


def test_without_any_key_the_list_is_empty(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_keys(config, as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    print_keys(config, as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_whole_key_can_be_revoked_and_the_answer_does_not_show_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _ = made(config, capsys)
    revoke_key(key, config)
    assert capsys.readouterr().out == f"{key[:11]} of tenant a is revoked\n"


@pytest.mark.parametrize(
    "wanted",
    [
        wish(""),
        wish("a b"),
        wish("x" * 65),
        wish("a\n"),
        wish(name="x" * 101),
        wish(name="\x1b[2J"),
        wish(expires="soon"),
    ],
)
def test_what_makes_no_sense_makes_no_key(config: Path, wanted: KeyWish) -> None:
    with pytest.raises(UsageError, match="--"):
        create_key(wanted, config)
    assert not KeyStore(config.parent / "state").exists


def test_a_store_that_is_turned_off_takes_no_keys(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keys_store is false"):
        create_key(wish(), written(tmp_path, auth={"keys_store": False}))


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)]
)
def test_a_lifetime_has_a_unit(text: str | None, seconds: int | None) -> None:
    assert lifetime_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "30 d", "30D", "1y", "٣d", "1234567d"])
def test_what_is_no_lifetime_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--expires"):
        lifetime_seconds(text)


@pytest.mark.parametrize(
    ("expires", "revoked", "state"),
    [(None, None, "good"), (11, None, "good"), (10, None, "expired"), (None, 1, "revoked"), (5, 1, "revoked")],
)
def test_the_state_of_a_key(expires: int | None, revoked: int | None, state: str) -> None:
    record = KeyRecord("i", b"", TenantId("a"), frozenset(INFERENCE), 0, expires=expires, revoked=revoked)
    assert state_of(record, 10) == state
