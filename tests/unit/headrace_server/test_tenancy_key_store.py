"""The store of keys on disk: made once, written whole, one writer at a time."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_server.domain import Scope, TenantId
from headrace_server.errors import UsageError
from headrace_server.tenancy.key_records import digest_of
from headrace_server.tenancy.key_store import KeyStore, NewKey

A = NewKey(TenantId("a"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "state"


@pytest.fixture
def store(folder: Path) -> KeyStore:
    return KeyStore(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_stored_as_a_digest_that_only_the_pepper_gives(store: KeyStore, folder: Path) -> None:
    key, record = store.create(NewKey(TenantId("a"), frozenset({Scope.ADMIN}), "laptop", 60), now=1000)
    found = store.read()
    assert found.records == (record,)
    assert record.digest == digest_of(key, found.pepper)
    assert (record.tenant, record.name, record.created, record.expires) == ("a", "laptop", 1000, 1060)
    secret = key.rpartition("-")[2].encode()
    assert all(secret not in path.read_bytes() for path in folder.iterdir())


def test_folder_and_files_are_their_owners_alone(store: KeyStore, folder: Path) -> None:
    store.create(A, now=0)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {"keys.json": 0o600, "pepper": 0o600}


def test_the_pepper_is_made_once(store: KeyStore) -> None:
    store.create(A, now=0)
    pepper = store.read().pepper
    store.create(A, now=0)
    assert store.read().pepper == pepper
    assert len(pepper) == 32


def test_a_pepper_that_is_there_before_the_first_key_is_used(store: KeyStore, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "pepper").write_bytes(b"p" * 40)
    store.create(A, now=0)
    assert store.read().pepper == b"p" * 40


def test_many_writers_lose_no_key(folder: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: KeyStore(folder).create(A, now=0)[1].id, range(40)))
    assert {record.id for record in KeyStore(folder).records()} == set(made)
    assert len(set(made)) == 40


def test_a_store_that_was_never_used_has_no_keys(store: KeyStore, folder: Path) -> None:
    assert not store.exists
    assert store.records() == ()
    assert not folder.exists()


def test_revoking_keeps_the_record_and_the_first_time(store: KeyStore) -> None:
    _, record = store.create(A, now=0)
    assert store.revoke(record.id, now=7).revoked == 7
    assert store.revoke(record.id, now=9).revoked == 7
    assert [kept.revoked for kept in store.records()] == [7]
    assert store.exists


@pytest.mark.parametrize("spelling", ["{id}", "aaaab", "hr-{id}", "{key}"])
def test_a_key_is_revoked_by_the_beginning_of_its_name(
    store: KeyStore, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = iter("aaaabbbbccccdddd")
    monkeypatch.setattr("headrace_server.tenancy.key_records.secrets.choice", lambda _alphabet: next(letters))
    first, _ = store.create(A, now=0)
    store.create(A, now=0)
    assert store.revoke(spelling.format(id="aaaabbbb", key=first), now=1).id == "aaaabbbb"
    assert [record.revoked for record in store.records()] == [1, None]


@pytest.mark.parametrize("prefix", ["", "hr-", "zz", "hr-zz", "-", "a"])
def test_a_beginning_of_none_or_of_several_revokes_nothing(
    store: KeyStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = iter("aaaaaaaaabbbbbbb")
    monkeypatch.setattr("headrace_server.tenancy.key_records.secrets.choice", lambda _alphabet: next(letters))
    store.create(A, now=0)
    store.create(A, now=0)
    with pytest.raises(UsageError, match="keys begin with"):
        store.revoke(prefix, now=1)
    assert [record.revoked for record in store.records()] == [None, None]


def damaged(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("pepper", None, "pepper is missing"),
        ("pepper", b"short", "shorter than 32 bytes"),
        ("keys.json", b"{", r"keys\.json is damaged"),
        ("keys.json", b"", r"keys\.json is damaged"),
        ("keys.json", b" " * (16 * 1024**2 + 1), "larger than"),
    ],
)
def test_a_damaged_store_is_one_line_for_reading_and_writing_and_stays_as_it_is(
    store: KeyStore, folder: Path, name: str, content: bytes | None, complaint: str
) -> None:
    store.create(A, now=0)
    damaged(folder, name, content)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for attempt in (store.read, lambda: store.create(A, now=0), lambda: store.revoke("a", now=0)):
        with pytest.raises(UsageError, match=complaint):
            attempt()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="keys cannot be written in"):
            KeyStore(folder).create(A, now=0)


def test_a_store_of_links_such_as_a_mounted_secret_is_read(store: KeyStore, folder: Path, tmp_path: Path) -> None:
    store.create(A, now=0)
    mounted = tmp_path / "secret"
    mounted.mkdir()
    (mounted / "..data").symlink_to(folder)
    for name in ("keys.json", "pepper"):
        (mounted / name).symlink_to(Path("..data") / name)
    assert KeyStore(mounted).read() == store.read()
