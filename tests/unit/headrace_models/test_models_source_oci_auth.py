"""Being let in by a registry: challenges, config files, helpers, tokens."""

import base64
import json
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import ModelError, SourceDenied, SourceUnusable
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.credential_helper import MAX_OUTPUT_BYTES, HelperAnswer, run_helper
from headrace_models.sources.docker_config import Credentials, find_credentials
from headrace_models.sources.oci_auth import RegistryAuthorizer
from headrace_models.sources.oci_challenge import Challenge, parse_challenges
from tests.fakes.registry import FakeRegistry, running_registry

SECRET = "s3cret-word"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def encoded(user: str, password: str = SECRET) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def config(directory: Path, **content: object) -> dict[str, str]:
    """The environment that finds this config."""
    (directory / "config.json").write_text(json.dumps(content))
    return {"DOCKER_CONFIG": str(directory), "PATH": str(directory)}


def helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# ---------------------------------------------------------------------------------------------------- challenges


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            ['Bearer realm="https://auth.example/token",service="example",scope="repository:a/b:pull"'],
            [("bearer", {"realm": "https://auth.example/token", "service": "example", "scope": "repository:a/b:pull"})],
        ),
        (['Basic realm="x", Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (['Basic realm="x"', "BEARER realm=y"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (['Bearer realm="a\\"b,c", error = "d"'], [("bearer", {"realm": 'a"b,c', "error": "d"})]),
        (["Negotiate", "Basic"], [("negotiate", {}), ("basic", {})]),
        (['Bearer realm="cut off'], [("bearer", {})]),
        ([""], []),
    ],
)
def test_challenges_are_read(values: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(values) == tuple(Challenge(*one) for one in expected)


@given(st.lists(st.text('Basicer =,"\\\t/:x', max_size=60)))
def test_no_challenge_is_too_odd_to_be_read(values: list[str]) -> None:
    parse_challenges(values)


# -------------------------------------------------------------------------------------------------- config files


def test_without_a_config_there_are_no_credentials(tmp_path: Path) -> None:
    assert find_credentials("r.example", "a/b", {"HOME": str(tmp_path)}) is None
    assert find_credentials("r.example", "a/b", {}) is None


@pytest.mark.parametrize(
    "key", ["r.example", "https://r.example", "https://r.example/v2/", "http://r.example/", "R.Example"]
)
def test_keys_are_host_names_however_they_are_written(tmp_path: Path, key: str) -> None:
    environ = config(tmp_path, auths={key: {"auth": encoded("user")}, "other.example": {"auth": encoded("other")}})
    assert find_credentials("r.example", "a/b", environ) == Credentials("user", SECRET)
    assert find_credentials("r.example:5000", "a/b", environ) is None


def test_the_longest_path_that_fits_wins(tmp_path: Path) -> None:
    users = {"r.example": "host", "r.example/team": "team", "r.example/team/model": "model", "r.example/te": "no"}
    environ = config(tmp_path, auths={key: {"auth": encoded(user)} for key, user in users.items()})
    found = {
        repository: getattr(find_credentials("r.example", repository, environ), "user", None)
        for repository in ("team/model", "team/other", "tea", "other")
    }
    assert found == {"team/model": "model", "team/other": "team", "tea": "host", "other": "host"}


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_several_names(tmp_path: Path, key: str) -> None:
    environ = config(tmp_path, auths={key: {"auth": encoded("user")}})
    assert find_credentials("docker.io", "ai/smollm2", environ) == Credentials("user", SECRET)


def test_user_and_password_may_be_written_out_as_in_pull_secrets(tmp_path: Path) -> None:
    environ = config(tmp_path, auths={"r.example": {"username": "user", "password": SECRET, "email": "x"}})
    assert find_credentials("r.example", "a", environ) == Credentials("user", SECRET)


def test_an_identity_token_is_kept_apart_from_passwords(tmp_path: Path) -> None:
    environ = config(tmp_path, auths={"r.example": {"auth": encoded("0-0", ""), "identitytoken": SECRET}})
    assert find_credentials("r.example", "a", environ) == Credentials("0-0", identity_token=SECRET)


def test_the_registry_auth_file_goes_before_dockers(tmp_path: Path) -> None:
    environ = config(tmp_path, auths={"r.example": {"auth": encoded("docker")}, "s.example": {"auth": encoded("s")}})
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {"r.example": {"auth": encoded("podman")}}}))
    environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "auth.json")
    assert find_credentials("r.example", "a", environ) == Credentials("podman", SECRET)
    assert find_credentials("s.example", "a", environ) == Credentials("s", SECRET)


def test_the_config_is_in_the_home_directory_unless_said_otherwise(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    config(tmp_path / ".docker", auths={"r.example": {"auth": encoded("user")}})
    assert find_credentials("r.example", "a", {"HOME": str(tmp_path)}) == Credentials("user", SECRET)


@pytest.mark.parametrize(
    "content",
    [
        "{" + SECRET,
        "[]",
        " " * (1 << 21),
        json.dumps({"auths": {"r.example": {"auth": f"!{SECRET}"}}}),
        json.dumps({"auths": {"r.example": {"auth": base64.b64encode(SECRET.encode()).decode()}}}),
    ],
)
def test_a_malformed_config_is_an_error_that_names_the_file_and_no_secret(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SourceUnusable, match="config.json") as raised:
        find_credentials("r.example", "a", {"DOCKER_CONFIG": str(tmp_path)})
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_a_config_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SourceUnusable, match="cannot be read"):
        find_credentials("r.example", "a", {"DOCKER_CONFIG": str(tmp_path)})


def test_what_is_malformed_inside_is_passed_over(tmp_path: Path) -> None:
    environ = config(tmp_path, auths={"r.example": "x", "": {}, "/": {}}, credHelpers=[], credsStore=5)
    assert find_credentials("r.example", "a", environ) is None


def test_secrets_are_not_in_the_text_of_credentials() -> None:
    assert SECRET not in repr(Credentials("user", SECRET, SECRET))
    assert SECRET not in repr(HelperAnswer("user", SECRET))


# ------------------------------------------------------------------------------------------------------- helpers


def test_the_helper_of_a_registry_goes_before_the_file(tmp_path: Path) -> None:
    helper(tmp_path, "one", f"""read server; echo '{{"Username":"'"$server"'","Secret":"{SECRET}"}}'""")
    environ = config(tmp_path, credHelpers={"r.example": "one"}, auths={"r.example": {"auth": encoded("file")}})
    assert find_credentials("r.example", "a", environ) == Credentials("r.example", SECRET)


def test_the_general_helper_comes_last_and_knows_docker_hub_by_its_old_name(tmp_path: Path) -> None:
    helper(tmp_path, "store", f"""read server; echo '{{"Username":"'"$server"'","Secret":"{SECRET}"}}'""")
    auths = {"r.example": {"auth": encoded("file")}, "https://index.docker.io/v1/": {}}
    environ = config(tmp_path, credsStore="store", auths=auths)
    assert find_credentials("r.example", "a", environ) == Credentials("file", SECRET)
    assert find_credentials("s.example", "a", environ) == Credentials("s.example", SECRET)
    assert find_credentials("docker.io", "a", environ) == Credentials("https://index.docker.io/v1/", SECRET)


def test_a_helper_may_give_an_identity_token(tmp_path: Path) -> None:
    helper(tmp_path, "one", f"""echo '{{"Username":"<token>","Secret":"{SECRET}"}}'""")
    environ = config(tmp_path, credsStore="one")
    assert find_credentials("r.example", "a", environ) == Credentials("", identity_token=SECRET)


def test_a_helper_that_knows_nothing_or_is_not_installed_means_anybody(tmp_path: Path) -> None:
    helper(tmp_path, "empty", "echo credentials not found in native keychain; exit 1")
    assert run_helper("empty", "r.example", {"PATH": str(tmp_path)}) is None
    assert run_helper("missing", "r.example", {"PATH": str(tmp_path)}) is None


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "-x", "a b", "a;b", "a\0"])
def test_the_name_of_a_helper_is_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceUnusable, match="not the name"):
        run_helper(name, "r.example", {"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    "script",
    [
        f"echo {SECRET}; exit 1",
        f"echo {SECRET}",
        f"""echo '{{"Username":5,"Secret":"{SECRET}"}}'""",
        f"while :; do echo {SECRET}; done",
        f"echo {SECRET}; while :; do :; done",
        "(while :; do :; done) & wait",
    ],
)
def test_a_helper_that_misbehaves_is_ended_and_nothing_that_it_wrote_is_shown(tmp_path: Path, script: str) -> None:
    helper(tmp_path, "bad", script)
    with pytest.raises(SourceUnusable, match="docker-credential-bad") as raised:
        run_helper("bad", "r.example", {"PATH": str(tmp_path)}, timeout_seconds=0.2)
    assert SECRET not in str(raised.value)
    assert MAX_OUTPUT_BYTES < 1 << 20


def test_a_helper_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "docker-credential-odd"
    path.write_text("#!/nowhere/at/all\n")
    path.chmod(0o755)
    with pytest.raises(SourceUnusable, match="cannot be run"):
        run_helper("odd", "r.example", {"PATH": str(tmp_path)})


# -------------------------------------------------------------------------------------------------------- tokens


def authorizer(
    registry: FakeRegistry, tmp_path: Path, credentials: Credentials | None = None, *, clock: Clock | None = None
) -> RegistryAuthorizer:
    return RegistryAuthorizer(
        f"http://{registry.address}/v2/team/model",
        "team/model",
        SourceOptions(tmp_path),
        find_credentials=lambda: credentials,
        clock=clock or Clock(),
    )


def challenge_of(registry: FakeRegistry, scope: str = "repository:team/model:pull") -> tuple[str, ...]:
    return (f'Bearer realm="http://{registry.address}/token",service="fake",scope="{scope}"',)


def home(registry: FakeRegistry) -> str:
    return f"http://{registry.address}/v2/team/model/blobs/x"


def test_anybody_gets_a_token_for_the_repository(tmp_path: Path) -> None:
    with running_registry() as registry:
        let_in = authorizer(registry, tmp_path)
        assert let_in.headers(home(registry)) == {}
        assert let_in.renew(home(registry), challenge_of(registry), {})
        assert let_in.headers(home(registry)) == {"Authorization": f"Bearer {registry.tokens.pop()}"}
        assert registry.token_requests()[0].query["scope"] == ["repository:team/model:pull"]


def test_the_scope_is_ours_where_the_challenge_names_none(tmp_path: Path) -> None:
    with running_registry() as registry:
        let_in = authorizer(registry, tmp_path)
        assert let_in.renew(home(registry), challenge_of(registry, scope=""), {})
        assert registry.token_requests()[0].query["scope"] == ["repository:team/model:pull"]


def test_who_pushes_asks_for_that_from_the_first_request_on(tmp_path: Path) -> None:
    scopes = ["repository:team/model:pull,push", "repository:other/model:pull"]
    for credentials in (None, Credentials("", identity_token="refresh")):
        with running_registry() as registry:
            registry.identity_tokens = {"refresh"} if credentials else set()
            let_in = RegistryAuthorizer(
                f"http://{registry.address}/v2/team/model",
                "team/model",
                SourceOptions(tmp_path),
                find_credentials=lambda credentials=credentials: credentials,  # type: ignore[misc]
                scopes=scopes,
            )
            assert let_in.renew(home(registry), challenge_of(registry), {})
            asked = registry.token_requests()[0]
            found = asked.form["scope"][0].split(" ") if credentials else asked.query["scope"]
            assert found == scopes


def test_nobody_else_gets_the_token(tmp_path: Path) -> None:
    with running_registry() as registry:
        let_in = authorizer(registry, tmp_path)
        let_in.renew(home(registry), challenge_of(registry), {})
        other = f"http://{registry.other_host}/v2/team/model"
        assert let_in.headers(other) == {}
        assert not let_in.renew(other, challenge_of(registry), {})


def test_passwords_go_to_the_token_service(tmp_path: Path) -> None:
    with running_registry() as registry:
        registry.users["user"] = SECRET
        let_in = authorizer(registry, tmp_path, Credentials("user", SECRET))
        assert let_in.renew(home(registry), challenge_of(registry), {})
        assert registry.token_requests()[0].authorization == f"Basic {encoded('user')}"


def test_identity_tokens_are_posted(tmp_path: Path) -> None:
    with running_registry() as registry:
        registry.identity_tokens.add(SECRET)
        let_in = authorizer(registry, tmp_path, Credentials("", identity_token=SECRET))
        assert let_in.renew(home(registry), challenge_of(registry), {})
        (request,) = registry.token_requests()
        assert (request.method, request.authorization) == ("POST", "")
        assert request.form["grant_type"] == ["refresh_token"]


def test_credentials_that_are_refused_are_no_secret_in_the_message(tmp_path: Path) -> None:
    with running_registry() as registry:
        registry.users["user"] = "another"
        let_in = authorizer(registry, tmp_path, Credentials("user", SECRET))
        with pytest.raises(SourceDenied, match="gives no token to pull team/model") as raised:
            let_in.renew(home(registry), challenge_of(registry), {})
        assert SECRET not in str(raised.value)
        assert encoded("user") not in str(raised.value)


def test_a_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    with running_registry() as registry:
        registry.expires_in = 300
        let_in = authorizer(registry, tmp_path, clock=clock)
        let_in.renew(home(registry), challenge_of(registry), {})
        first = let_in.headers(home(registry))
        clock.now += 269
        assert let_in.headers(home(registry)) == first
        clock.now += 2
        assert let_in.headers(home(registry)) != first


@pytest.mark.parametrize("expires_in", [0, -5, 59])
def test_a_token_is_good_for_a_minute_whatever_the_service_says(tmp_path: Path, expires_in: int) -> None:
    clock = Clock()
    with running_registry() as registry:
        registry.expires_in = expires_in
        let_in = authorizer(registry, tmp_path, clock=clock)
        let_in.renew(home(registry), challenge_of(registry), {})
        clock.now += 53
        let_in.headers(home(registry))
        assert len(registry.token_requests()) == 1


def test_of_several_threads_that_are_refused_one_asks(tmp_path: Path) -> None:
    with running_registry() as registry:
        let_in = authorizer(registry, tmp_path)
        challenges = challenge_of(registry)
        threads = [threading.Thread(target=let_in.renew, args=(home(registry), challenges, {})) for _number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.token_requests()) == 1


def test_basic_is_answered_once_with_a_password(tmp_path: Path) -> None:
    with running_registry() as registry:
        let_in = authorizer(registry, tmp_path, Credentials("user", SECRET))
        assert let_in.renew(home(registry), ('Basic realm="x"',), {})
        sent = let_in.headers(home(registry))
        assert sent == {"Authorization": f"Basic {encoded('user')}"}
        assert not let_in.renew(home(registry), ('Basic realm="x"',), sent)


@pytest.mark.parametrize("challenge", ['Basic realm="x"', "Negotiate", ""])
def test_without_a_password_there_is_nothing_to_answer(tmp_path: Path, challenge: str) -> None:
    with running_registry() as registry:
        assert not authorizer(registry, tmp_path).renew(home(registry), (challenge,), {})


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://r.example", "http://auth.example/token"),
        ("https://r.example", "http://127.0.0.1:1/token"),
        ("https://r.example", "ftp://auth.example/token"),
        ("https://r.example", "https://user:pw@auth.example/token"),
        ("https://r.example", ""),
    ],
)
def test_a_token_service_that_is_not_safe_to_ask_is_refused(tmp_path: Path, registry: str, realm: str) -> None:
    asked: list[None] = []
    let_in = RegistryAuthorizer(
        f"{registry}/v2/a", "a", SourceOptions(tmp_path), find_credentials=lambda: asked.append(None)
    )
    with pytest.raises(SourceUnusable):
        let_in.renew(f"{registry}/v2/a", (f'Bearer realm="{realm}"',), {})


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"token": ""}', b"no", b" " * (1 << 20)]
)
def test_an_answer_without_a_token_is_refused(tmp_path: Path, answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running_registry() as registry, caplog.at_level(logging.DEBUG):
        registry.put_manifest(answer, tag="token")
        realm = f"http://{registry.address}/v2/team/model/manifests/token"
        with pytest.raises(ModelError, match="token"):
            authorizer(registry, tmp_path).renew(home(registry), (f'Bearer realm="{realm}"',), {})
