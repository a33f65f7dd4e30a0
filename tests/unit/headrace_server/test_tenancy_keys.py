"""Keys: what a keys file may hold, and that a wrong key tells nothing."""

import hashlib
import hmac
from pathlib import Path

import pytest

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.errors import Unauthenticated, UsageError
from headrace_server.tenancy.keys import EVERYONE, MIN_KEY_CHARS, KeyList, OpenDoor, read_keys_file

FIRST, SECOND = "first-key-0123456789", "second-key-9876543210"


def keys_file(directory: Path, text: str) -> Path:
    path = directory / "keys"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_each_key_of_the_list_opens(key: str) -> None:
    caller = KeyList([FIRST, SECOND]).authenticate(key)
    assert caller == EVERYONE
    assert caller.scopes == {Scope.INFERENCE, Scope.ADMIN}


WRONG = [
    None,
    "",
    " ",
    FIRST[:-1],
    FIRST + "x",
    FIRST.upper(),
    f" {FIRST}",
    f"{FIRST},{SECOND}",
    "\udc80",
    "é" * 16,
    "\0",
]


@pytest.mark.parametrize("presented", WRONG)
def test_whatever_is_wrong_the_refusal_is_the_same(presented: str | None) -> None:
    with pytest.raises(Unauthenticated) as caught:
        KeyList([FIRST, SECOND]).authenticate(presented)
    with pytest.raises(Unauthenticated) as other:
        KeyList([FIRST]).authenticate("something else entirely")
    assert (caught.value.message, caught.value.code) == (other.value.message, other.value.code)


def test_an_empty_list_lets_nobody_in() -> None:
    with pytest.raises(Unauthenticated):
        KeyList([]).authenticate("")


@pytest.mark.parametrize("presented", [FIRST, SECOND, "wrong", None])
def test_every_key_is_compared_on_every_call_and_in_constant_time(
    presented: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(theirs)
        return hmac_compare(ours, theirs)

    hmac_compare = hmac.compare_digest
    keys = KeyList([FIRST, SECOND])
    monkeypatch.setattr("headrace_server.tenancy.keys.hmac.compare_digest", compare)
    try:
        keys.authenticate(presented)
    except Unauthenticated:
        assert presented not in (FIRST, SECOND)
    assert compared == [hashlib.sha256(key.encode()).digest() for key in (FIRST, SECOND)]


def test_no_key_is_kept_in_the_clear() -> None:
    keys = KeyList([FIRST])
    assert FIRST not in repr(vars(keys))


def test_an_open_door_asks_for_nothing() -> None:
    assert OpenDoor().authenticate(None) == OpenDoor().authenticate("anything") == EVERYONE


def test_a_keys_file_has_a_key_a_line_with_comments_blank_lines_and_either_line_end(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f"# ours\n\n  {FIRST}  # the laptop\r\n\t\n{SECOND}\n#{FIRST}x\n")
    keys = read_keys_file(path)
    assert keys.authenticate(FIRST) == keys.authenticate(SECOND) == EVERYONE
    for wrong in ("", "# ours", "# the laptop", FIRST + "x"):
        with pytest.raises(Unauthenticated):
            keys.authenticate(wrong)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "#" + FIRST])
def test_a_keys_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="holds no key"):
        read_keys_file(keys_file(tmp_path, text))


def test_a_short_key_is_refused_even_beside_a_good_one_and_not_shown(tmp_path: Path) -> None:
    short = "x" * (MIN_KEY_CHARS - 1)
    with pytest.raises(UsageError, match="shorter than 16") as caught:
        read_keys_file(keys_file(tmp_path, f"{FIRST}\n{short}\n"))
    assert short not in str(caught.value)
    assert read_keys_file(keys_file(tmp_path, short + "x")).authenticate(short + "x") == EVERYONE


def test_an_unreadable_keys_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe" * 20)
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(UsageError, match="keys_file") as caught:
            read_keys_file(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_may_be_for_a_tenant_and_then_is_for_inference_only(tmp_path: Path) -> None:
    keys = read_keys_file(keys_file(tmp_path, f"{FIRST} team-a  # theirs\n{SECOND}\n"))
    assert keys.authenticate(FIRST) == Caller(TenantId("team-a"), frozenset({Scope.INFERENCE}))
    assert keys.authenticate(SECOND) == EVERYONE


@pytest.mark.parametrize("line", [f"{FIRST} a b", f"{FIRST} -a", f"{FIRST} {'x' * 65}", f"{FIRST}\n{FIRST} a"])
def test_a_line_that_is_no_key_and_tenant_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match="keys_file") as caught:
        read_keys_file(keys_file(tmp_path, line))
    assert FIRST not in str(caught.value)
