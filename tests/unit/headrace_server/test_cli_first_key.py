"""The key that a server makes for itself: where, once, and shown before anything can fail."""

from pathlib import Path
from typing import Any

import pytest

from headrace_server.access import build_access
from headrace_server.cli.first_key import KeyNotice, make_first_key
from headrace_server.domain import Scope
from headrace_server.errors import UsageError
from headrace_server.settings.schema import Settings
from headrace_server.tenancy.key_store import KeyStore


def settings(folder: Path, **auth: Any) -> Settings:
    return Settings.model_validate({"server": {"state_dir": folder / "state", "host": "0.0.0.0"}, "auth": auth})


def test_where_nobody_has_made_a_key_one_is_made_printed_and_opens_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice = make_first_key(settings(tmp_path))
    assert notice is not None
    assert notice.key is not None
    assert notice.key in capsys.readouterr().out
    caller = build_access(settings(tmp_path)).authenticator.authenticate(notice.key)
    assert caller.tenant == "default"
    assert caller.scopes == {Scope.INFERENCE}


def test_a_later_start_makes_none_even_if_the_first_was_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_first_key(settings(tmp_path))
    assert first is not None
    assert first.key is not None
    KeyStore(tmp_path / "state").revoke(first.key, 0)
    capsys.readouterr()
    assert make_first_key(settings(tmp_path)) == KeyNotice(None)
    assert capsys.readouterr().out == ""
    assert len(KeyStore(tmp_path / "state").records()) == 1


@pytest.mark.parametrize(
    "auth",
    [
        {"mode": "none"},
        {"mode": "keys"},
        {"keys_file": "/run/keys"},
        {"keys_store": "/run/keys"},
        {"keys_store": False},
        {"jwt": {"jwks_file": "/run/jwks.json", "audience": "headrace", "tenant_claim": "team"}},
    ],
    ids=str,
)
def test_where_the_configuration_says_who_may_call_none_is_made(tmp_path: Path, auth: dict[str, Any]) -> None:
    assert make_first_key(settings(tmp_path, **auth)) is None
    assert not (tmp_path / "state").exists()


def test_a_state_directory_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UsageError, match="keys cannot be written in"):
        make_first_key(settings(tmp_path))
