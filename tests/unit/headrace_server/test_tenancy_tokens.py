"""Tokens of an issuer: which are taken and for whom, and that everything else is nobody."""

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.errors import UsageError
from headrace_server.tenancy.tokens import MAX_TOKEN_BYTES, Subject, TokenRules, Tokens
from tests.fakes.tokens import AUDIENCE, SUBJECT, Issuer, assembled, jwk, key_file, public_pem

ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "ES384", "EdDSA"})
TEAM = Subject("system:serviceaccount:team-a:*", TenantId("team-a"))
RULES = TokenRules(AUDIENCE, ALGORITHMS, (TEAM,))
ISSUER = Issuer()
CALLER = Caller(TenantId("team-a"), key=SUBJECT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(key_file(jwk("p256", "k1"), jwk("rsa", "r1"), jwk("ed25519", "e1"), jwk("p384", "k2")))
    return path


@pytest.fixture
def tokens(path: Path) -> Tokens:
    return Tokens(path, RULES)


@pytest.mark.parametrize(
    "issuer",
    [
        Issuer(),
        Issuer("rsa", "r1", "RS256"),
        Issuer("rsa", "r1", "PS256"),
        Issuer("ed25519", "e1", "EdDSA"),
        Issuer("p384", "k2", "ES384"),
    ],
)
def test_a_good_token_brings_the_tenant_of_its_subject(tokens: Tokens, issuer: Issuer) -> None:
    assert tokens.find(issuer.token()) == CALLER


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["other", AUDIENCE]},
        {"iss": "https://anybody.example"},
        {"iat": None},
        {"kubernetes.io": {"namespace": "team-a"}},
        {"padding": "x" * 5000},
    ],
)
def test_what_issuers_vary_is_taken(tokens: Tokens, claims: dict[str, Any]) -> None:
    assert tokens.find(ISSUER.token(**claims)) == CALLER


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -20), ("nbf", 20)])
def test_clocks_may_differ_a_little(tokens: Tokens, claim: str, seconds: int) -> None:
    claims: dict[str, Any] = {claim: int(time.time()) + seconds}
    assert tokens.find(ISSUER.token(**claims)) == CALLER


NOW = int(time.time())  # tests may run many minutes later
PAYLOAD = {"sub": SUBJECT, "aud": AUDIENCE, "exp": NOW + 86_400}


def secret_signed(algorithm: str, header: dict[str, Any], secret: bytes) -> str:
    """Signed with a shared secret."""
    unsigned = assembled({"alg": algorithm, "kid": "r1", **header}, PAYLOAD).rpartition(".")[0]
    signature = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


BAD: dict[str, Callable[[], str]] = {
    "alg none": lambda: assembled({"alg": "none", "kid": "k1"}, PAYLOAD),
    "alg None": lambda: assembled({"alg": "None", "kid": "k1"}, PAYLOAD, b"x"),
    "alg none with the signature of another": lambda: (
        assembled({"alg": "none", "kid": "k1"}, PAYLOAD) + ISSUER.token().rpartition(".")[2]
    ),
    "alg missing": lambda: assembled({"kid": "k1"}, PAYLOAD, b"x"),
    "alg a list": lambda: assembled({"alg": ["ES256"], "kid": "k1"}, PAYLOAD, b"x"),
    "HS256 with the public key as secret": lambda: secret_signed("HS256", {}, public_pem("rsa")),
    "HS256 with an empty secret": lambda: secret_signed("HS256", {}, b""),
    "an algorithm that is not allowed": lambda: Issuer("rsa", "r1", "RS512").token(),
    "an algorithm of another kind of key": lambda: Issuer("rsa", "k1", "RS256").token(),
    "a key of another kind": lambda: Issuer("p256", "r1", "ES256").token(),
    "signed with another key": lambda: Issuer("p256-of-others", "r1", "RS256").token(),
    "unknown kid": lambda: Issuer(key_id="k9").token(),
    "no kid": lambda: assembled({"alg": "ES256"}, PAYLOAD, b"x" * 64),
    "kid a path": lambda: Issuer(key_id="../../etc/passwd").token(),
    "embedded jwk": lambda: Issuer("rsa", "mine", "RS256").token(headers={"jwk": jwk("rsa", "mine")}),
    "embedded jwk beside a known kid": lambda: ISSUER.token(headers={"jwk": jwk("p256", "k1")}),
    "jku": lambda: ISSUER.token(headers={"jku": "http://127.0.0.1:1/jwks"}),
    "x5u": lambda: ISSUER.token(headers={"x5u": "http://127.0.0.1:1/x"}),
    "x5c": lambda: ISSUER.token(headers={"x5c": ["MII"]}),
    "crit": lambda: ISSUER.token(headers={"crit": ["exp"]}),
    "unencoded payload": lambda: ISSUER.token(headers={"b64": False}),
    "compressed": lambda: ISSUER.token(headers={"zip": "DEF"}),
    "wrong audience": lambda: ISSUER.token(aud="others"),
    "wrong audiences": lambda: ISSUER.token(aud=["others", "more"]),
    "part of the audience": lambda: ISSUER.token(aud=AUDIENCE[:-1]),
    "aud missing": lambda: ISSUER.token(aud=None),
    "aud empty": lambda: ISSUER.token(aud=""),
    "aud an object": lambda: ISSUER.token(aud={AUDIENCE: 1}),
    "expired": lambda: ISSUER.token(exp=NOW - 3600),
    "exp missing": lambda: ISSUER.token(exp=None),
    "exp no number": lambda: ISSUER.token(exp="tomorrow"),
    "exp never": lambda: ISSUER.token(exp=float("inf")),
    "iat never": lambda: ISSUER.token(iat=float("inf")),
    "nbf in the future": lambda: ISSUER.token(nbf=NOW + 3600),
    "iat in the future": lambda: ISSUER.token(iat=NOW + 3600),
    "sub missing": lambda: ISSUER.token(sub=None),
    "sub empty": lambda: ISSUER.token(sub=""),
    "sub of others": lambda: ISSUER.token(sub="system:serviceaccount:team-b:app"),
    "sub that only ends right": lambda: ISSUER.token(sub=f"x{SUBJECT}"),
    "no signature": lambda: ISSUER.token().rpartition(".")[0] + ".",
    "half a signature": lambda: ISSUER.token()[:-10],
    "another payload": lambda: ".".join(
        (ISSUER.token().split(".")[0], assembled({}, PAYLOAD).split(".")[1], ISSUER.token().split(".")[2])
    ),
    "payload no object": lambda: assembled({"alg": "ES256", "kid": "k1"}, b"[]", b"x" * 64),
    "garbage": lambda: "a.b.c",
    "three dots": lambda: ISSUER.token() + ".",
    "only dots": lambda: "..",
    "not base64": lambda: "é.ü.ö",
    "surrogate": lambda: "\udc80.a.b",
    "deep header": lambda: base64.urlsafe_b64encode(b"[" * 3000 + b"]" * 3000).decode() + ".e30.e30",
    "64 KiB": lambda: ISSUER.token(padding="x" * 65_536),
    "just too long": lambda: ISSUER.token(padding="x" * MAX_TOKEN_BYTES),
    "empty": lambda: "",
    "one of our keys": lambda: "hr-abcdefgh-" + "x" * 43,
}


@pytest.mark.parametrize("made", BAD.values(), ids=list(BAD))
def test_a_bad_token_is_nobody_and_nobody_is_asked(
    tokens: Tokens, made: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert tokens.find(made()) is None


def test_another_issuer_is_nobody_where_one_is_named(path: Path) -> None:
    tokens = Tokens(path, TokenRules(AUDIENCE, ALGORITHMS, (TEAM,), issuer="https://us.example"))
    assert tokens.find(ISSUER.token(iss="https://us.example")) == CALLER
    for other in ("https://us.example/", "https://them.example", None):
        assert tokens.find(ISSUER.token(iss=other)) is None


def test_the_first_rule_that_fits_counts_with_its_scopes(path: Path) -> None:
    subjects = (
        Subject("spiffe://example.org/ns/*/sa/gateway", TenantId("edge"), frozenset({Scope.GATEWAY})),
        Subject("spiffe://example.org/ns/team-b/*", TenantId("team-b")),
        Subject("*", TenantId("rest"), frozenset({Scope.INFERENCE, Scope.ADMIN})),
    )
    tokens = Tokens(path, TokenRules(AUDIENCE, ALGORITHMS, subjects))

    def found(subject: str) -> tuple[str, set[Scope]]:
        caller = tokens.find(ISSUER.token(sub=subject))
        assert caller is not None
        return caller.tenant, set(caller.scopes)

    assert found("spiffe://example.org/ns/team-b/sa/gateway") == ("edge", {Scope.GATEWAY})
    assert found("spiffe://example.org/ns/team-b/sa/app") == ("team-b", {Scope.INFERENCE})
    assert found("alice\n") == ("rest", {Scope.INFERENCE, Scope.ADMIN})


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "ab", True),
        ("a*", "ba", False),
        ("a*c", "abc", True),
        ("a*c", "ab", False),
        ("a.c", "abc", False),
        ("*", "", True),
        ("a*", "a\nb", True),
    ],
)
def test_a_star_stands_for_anything_and_all_else_for_itself(pattern: str, subject: str, fits: bool) -> None:
    assert Subject(pattern, TenantId("t")).fits(subject) is fits


def test_a_claim_names_the_tenant_of_subjects_without_a_rule(path: Path) -> None:
    tokens = Tokens(path, TokenRules(AUDIENCE, ALGORITHMS, (TEAM,), tenant_claim="org"))
    assert tokens.find(ISSUER.token(sub="alice", org="team-c")) == Caller(TenantId("team-c"), key="alice")
    assert tokens.find(ISSUER.token(org="team-c")) == CALLER
    for wrong in (None, "", "a b", 7, ["team-c"], "x" * 65, "team-c\n"):
        assert tokens.find(ISSUER.token(sub="alice", org=wrong)) is None


def test_new_keys_count_within_a_second_and_old_ones_no_more(path: Path) -> None:
    now = 0.0
    tokens, token = Tokens(path, RULES, monotonic=lambda: now), ISSUER.token()
    path.write_text(key_file(jwk("p256", "new")))
    assert tokens.find(token)
    now += 1
    assert tokens.find(token) is None
    assert tokens.find(Issuer(key_id="new").token())
    path.write_text("{")
    now += 1
    assert tokens.find(Issuer(key_id="new").token())


class TestRemembering:
    """A token that was good is not verified again, and no longer good for that."""

    @pytest.fixture
    def verified(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The tokens that were verified."""
        seen: list[str] = []
        decode = jwt.decode

        def watched(token: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
            seen.append(token)
            return decode(token, *args, **kwargs)

        monkeypatch.setattr("headrace_server.tenancy.tokens.jwt.decode", watched)
        return seen

    def test_it_is_verified_once(self, tokens: Tokens, verified: list[str]) -> None:
        token = ISSUER.token()
        assert [tokens.find(token) for _ in range(3)] == [CALLER] * 3
        assert verified == [token]

    def test_it_is_not_remembered_beyond_its_end(self, path: Path, verified: list[str]) -> None:
        now = time.time()
        tokens = Tokens(path, RULES, now=lambda: now)
        token = ISSUER.token(exp=int(now) + 100)
        assert tokens.find(token)
        now += 101
        tokens.find(token)
        assert len(verified) == 2

    def test_a_bad_one_is_never_remembered(self, tokens: Tokens, verified: list[str]) -> None:
        for token in (ISSUER.token(aud="others"), ISSUER.token(sub="others")):
            assert [tokens.find(token) for _ in range(2)] == [None, None]
        assert len(verified) == 4

    def test_as_many_as_there_are_take_bounded_memory(
        self, tokens: Tokens, verified: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("headrace_server.tenancy.tokens._MAX_REMEMBERED", 2)
        first, *others = [ISSUER.token(jti=str(number)) for number in range(3)]
        for token in (first, *others, first):
            assert tokens.find(token) == CALLER
        assert verified == [first, *others, first]


def test_a_long_subject_is_shortened_in_logs(path: Path) -> None:
    caller = Tokens(path, RULES).find(ISSUER.token(sub=SUBJECT + "x" * 500))
    assert caller is not None
    assert len(caller.key) == 200


def test_a_public_key_is_used_for_its_own_algorithm_only_where_it_names_one(path: Path) -> None:
    path.write_text(key_file(jwk("rsa", "r1", alg="RS256"), jwk("p256", "k1", use="sig")))
    tokens = Tokens(path, RULES)
    assert tokens.find(Issuer("rsa", "r1", "RS256").token())
    assert tokens.find(Issuer("rsa", "r1", "PS256").token()) is None
    assert tokens.find(ISSUER.token())


USELESS: dict[str, dict[str, Any]] = {
    "symmetric": {"kty": "oct", "k": "c2VjcmV0", "kid": "k1"},
    "for encryption": jwk("p256", "k1", use="enc"),
    "private": jwk("p256", "k1", d="x"),
    "without a kid": {name: value for name, value in jwk("p256", "k1").items() if name != "kid"},
    "of an unknown kind": {"kty": "new", "kid": "k1"},
    "of another algorithm": jwk("p256", "k1", alg="HS256"),
    "too short": jwk("rsa-1024", "k1"),
}


@pytest.mark.parametrize("entry", USELESS.values(), ids=list(USELESS))
def test_keys_that_are_of_no_use_are_passed_over_and_a_file_of_them_is_refused(
    path: Path, entry: dict[str, Any]
) -> None:
    path.write_text(key_file(entry, jwk("p256", "good")))
    assert Tokens(path, RULES).find(Issuer(key_id="good").token())
    path.write_text(key_file(entry))
    with pytest.raises(UsageError, match="holds no public key"):
        Tokens(path, RULES)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"keys": 1}',
        '{"keys": [1]}',
        json.dumps({"keys": [jwk("p256", "k1", x="!")]}),
        "[" * 99_999,
    ],
)
def test_a_file_that_is_no_set_of_keys_is_one_line(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(UsageError, match=r"auth\.jwt\.jwks_file") as caught:
        Tokens(path, RULES)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_huge_is_one_line(path: Path) -> None:
    path.write_bytes(b" " * (1024**2 + 1))
    for wrong in (path, path.with_name("missing"), path.parent):
        with pytest.raises(UsageError, match=r"auth\.jwt\.jwks_file"):
            Tokens(wrong, RULES)
