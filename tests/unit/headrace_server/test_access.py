"""What the settings come to for callers: who needs a key, and on what terms tenants are served."""

from pathlib import Path
from typing import Any

import pytest

from headrace_server.access import Access, build_access, key_store
from headrace_server.domain import Caller, Scope, ServiceClass, Tenant, TenantId
from headrace_server.errors import QuotaExceeded, Unauthenticated, UsageError
from headrace_server.settings.schema import Settings
from headrace_server.tenancy.key_store import KeyStore, NewKey
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.tokens import AUDIENCE, SUBJECT, Issuer, jwk, key_file

KEY = "a-key-in-a-file-0123456789"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def settings(state: Path, *, host: str = "127.0.0.1", **sections: Any) -> Settings:
    return Settings.model_validate({"server": {"state_dir": state, "host": host}, **sections})


def access(state: Path, **sections: Any) -> Access:
    return build_access(settings(state, **sections))


def made(folder: Path) -> str:
    return KeyStore(folder).create(NewKey(TenantId("a")), 0)[0]


def is_open(access: Access) -> bool:
    try:
        return access.authenticator.authenticate(None) == EVERYONE
    except Unauthenticated:
        return False


class TestWhoNeedsAKey:
    """Keys are needed as soon as there are any, wherever they come from."""

    def test_without_any_nobody_does_on_this_machine(self, state: Path) -> None:
        assert is_open(access(state))
        assert not state.exists()

    def test_a_key_that_was_made_is_asked_for_also_once_it_is_revoked(self, state: Path) -> None:
        key = made(state)
        assert not is_open(access(state))
        assert access(state).authenticator.authenticate(key).tenant == "a"
        KeyStore(state).revoke(key[:11], 0)
        assert not is_open(access(state))

    def test_a_keys_file_is_enough(self, state: Path, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(KEY)
        opened = access(state, auth={"keys_file": tmp_path / "keys"})
        assert not is_open(opened)
        assert opened.authenticator.authenticate(KEY) == EVERYONE

    def test_an_issuer_is_enough(self, state: Path, tmp_path: Path) -> None:
        (tmp_path / "jwks").write_text(key_file(jwk("p256", "k1")))
        subjects = [{"subject": SUBJECT, "tenant": "team-a", "scopes": ["inference", "admin"]}]
        jwt = {"jwks_file": tmp_path / "jwks", "audience": AUDIENCE, "subjects": subjects}
        opened = access(state, auth={"jwt": jwt})
        assert not is_open(opened)
        scopes = frozenset({Scope.INFERENCE, Scope.ADMIN})
        assert opened.authenticator.authenticate(Issuer().token()) == Caller(TenantId("team-a"), scopes, SUBJECT)

    def test_mode_keys_asks_for_one_before_there_is_any(self, state: Path) -> None:
        assert not is_open(access(state, auth={"mode": "keys"}))

    def test_mode_none_asks_for_none_whatever_there_is(self, state: Path) -> None:
        made(state)
        assert is_open(access(state, auth={"mode": "none"}))

    def test_a_store_that_is_turned_off_does_not_count(self, state: Path) -> None:
        made(state)
        assert key_store(settings(state, auth={"keys_store": False})) is None
        assert is_open(access(state, auth={"keys_store": False}))

    def test_a_store_may_lie_elsewhere(self, state: Path, tmp_path: Path) -> None:
        key = made(tmp_path / "secret")
        opened = access(state, auth={"keys_store": str(tmp_path / "secret")})
        assert opened.authenticator.authenticate(key).tenant == "a"

    def test_a_store_without_its_pepper_is_one_line(self, state: Path) -> None:
        made(state)
        (state / "pepper").unlink()
        with pytest.raises(UsageError, match="pepper is missing"):
            access(state)


class TestBeyondThisMachine:
    """A server that others can reach is open on purpose only."""

    def test_it_is_refused_without_keys(self, state: Path) -> None:
        with pytest.raises(UsageError, match=r"auth\.mode: none"):
            access(state, host="0.0.0.0")

    def test_it_runs_with_any_kind_of_key_or_on_purpose(self, state: Path, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(KEY)
        for auth in ({"keys_file": tmp_path / "keys"}, {"mode": "keys"}):
            assert not is_open(access(state, host="0.0.0.0", auth=auth))
        assert is_open(access(state, host="0.0.0.0", auth={"mode": "none"}))
        made(state)
        assert not is_open(access(state, host="0.0.0.0"))


class TestTenants:
    """Sections of the configuration become terms."""

    MODELS = ({"id": "m", "aliases": ["alias"], "engine": "synthetic"},)

    def test_every_term_arrives(self, state: Path) -> None:
        terms = {
            "id": "a",
            "weight": 2,
            "classes": ["batch"],
            "models": ["alias", "nobody"],
            "max_concurrency": 3,
            "tokens_per_minute": 60,
            "queue_share": 0.25,
        }
        opened = access(state, models=self.MODELS, tenants=[terms])
        assert opened.terms.tenants.configured == (
            Tenant(TenantId("a"), 2.0, frozenset({ServiceClass.BATCH}), frozenset({"m", "nobody"}), 3, 60, 0.25),  # type: ignore[arg-type]
        )

    def test_what_is_not_said_has_its_default(self, state: Path) -> None:
        (alone,) = access(state, tenants=[{"id": "a"}]).terms.tenants.configured
        assert alone == Tenant(TenantId("a"))
        several = access(state, tenants=[{"id": "a"}, {"id": "b", "queue_share": 1}]).terms.tenants.configured
        assert [tenant.queue_share for tenant in several] == [0.5, 1.0]

    def test_quotas_are_of_those_who_have_one(self, state: Path) -> None:
        quotas = access(state, tenants=[{"id": "a", "tokens_per_minute": 60}, {"id": "b"}]).quotas
        for id in ("a", "b"):
            quotas.spend(TenantId(id), 61, 0)
        quotas.check(TenantId("b"), 0)
        with pytest.raises(QuotaExceeded):
            quotas.check(TenantId("a"), 0)

    def test_classes_have_their_deadlines(self, state: Path) -> None:
        scheduling = {"default_class": "interactive", "classes": {"batch": {"deadline_seconds": 60}}}
        terms = access(state, scheduling=scheduling).terms
        assert terms.default_class is ServiceClass.INTERACTIVE
        assert terms.deadline_seconds == {ServiceClass.BATCH: 60.0}

    def test_prefixes_are_isolated_unless_that_is_turned_off(self, state: Path) -> None:
        a = TenantId("a")
        salts = {access(state).terms.cache_salt(a) for _ in range(2)}
        assert len(salts) == 2
        assert None not in salts
        assert access(state, auth={"isolate_prefixes": False}).terms.cache_salt(a) is None
