"""Keys that are made and revoked while the server runs, and tokens of an issuer."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.command import headrace, one_line
from tests.fakes.process import ServerProcess, running_server
from tests.fakes.tokens import AUDIENCE, Issuer, assembled, jwk, key_file

pytestmark = pytest.mark.timeout(120)

_TAKEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class House:
    """A server and the operator of its machine."""

    server: ServerProcess
    config: Path
    log: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of the operator."""
        return headrace(
            *arguments, "--config", str(self.config), env={"HEADRACE_SERVER__STATE_DIR": str(self.server.state_dir)}
        )

    def made(self, *arguments: str) -> str:
        """A new key."""
        done = self.run("keys", "create", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def get(self, key: str | None, path: str = "/v1/models") -> httpx.Response:
        """What is answered to a key."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.get(f"{self.server.base_url}{path}", headers=headers, trust_env=False)

    def until(self, key: str | None, status: int) -> None:
        """Wait until the server has taken note of a change."""
        soon(lambda: self.get(key).status_code == status)


def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TAKEN_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server that began without keys."""
    folder = tmp_path_factory.mktemp("house")
    config = folder / "headrace.yaml"
    config.write_text("models: [{id: m, engine: synthetic}]")
    with running_server(config, folder / "log") as server:
        yield House(server, config, config.with_name("log"))


def test_the_first_key_closes_a_server_that_was_open_and_the_last_ones_end_does_not_open_it(house: House) -> None:
    assert house.get(None).status_code == 200
    key = house.made("--tenant", "a")
    house.until(None, 401)
    assert house.get(key).status_code == 200
    assert house.run("keys", "revoke", key[:11]).stdout == f"{key[:11]} of tenant a is revoked\n"
    house.until(key, 401)
    assert house.get(None).status_code == 401
    assert house.run("ps").returncode == 0  # the control socket needs none


def test_every_key_opens_what_it_is_for(house: House) -> None:
    inference = house.made("--tenant", "a")
    admin = house.made("--tenant", "ops", "--scope", "admin")
    house.until(inference, 200)
    house.until(admin, 403)
    assert (house.get(inference, "/admin/models").status_code, house.get(admin, "/admin/models").status_code) == (
        403,
        200,
    )
    done = headrace("ps", "--url", house.server.base_url, env={"HEADRACE_API_KEY": admin})
    assert done.returncode == 0
    refused = headrace("ps", "--url", house.server.base_url, env={"HEADRACE_API_KEY": inference})
    assert "does not have the scope 'admin'" in one_line(refused)


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same_to_the_byte(house: House) -> None:
    good, revoked = house.made(), house.made()
    house.run("keys", "revoke", revoked)
    house.until(good, 200)
    house.until(revoked, 401)
    wrong = [None, revoked, good[:-1], good + "x", good.upper(), f"{good} {good}", good[:11], "hr-", "a.b.c"]
    answers = [house.get(key) for key in wrong]
    doubled = [("authorization", f"Bearer {good}")] * 2
    answers.append(httpx.get(f"{house.server.base_url}/v1/models", headers=doubled, trust_env=False))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert len({tuple(sorted(without_ids(answer).items())) for answer in answers}) == 1


def without_ids(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}


def test_the_list_names_keys_and_shows_none(house: House) -> None:
    key = house.made("--tenant", "lists", "--name", "laptop", "--expires", "30d")
    (shown,) = [one for one in json.loads(house.run("keys", "ls", "--json").stdout) if one["tenant"] == "lists"]
    assert (shown["key"], shown["name"], shown["state"], shown["scopes"]) == (key[:11], "laptop", "good", ["inference"])
    assert shown["expires"].endswith("+00:00")
    listing = house.run("keys", "ls").stdout
    assert key[:11] in listing
    assert key not in listing
    stored = (house.server.state_dir / "keys.json").read_text()
    assert key.rpartition("-")[2] not in stored
    assert "key" not in house.run("keys", "revoke", "hr-zzzzzzzz").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--tenant", "a b"),
        ("create", "--expires", "soon"),
        ("create", "--scope", "root"),
        ("revoke", "hr-zzzzzzzz"),
        ("revoke", ""),
        ("revoke",),
    ],
)
def test_what_makes_no_sense_is_exit_2(house: House, arguments: tuple[str, ...]) -> None:
    done = house.run("keys", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_store_that_is_damaged_while_the_server_runs_changes_nothing(house: House) -> None:
    key, path = house.made(), house.server.state_dir / "keys.json"
    house.until(key, 200)
    content = path.read_bytes()
    try:
        path.write_text("{")
        soon(lambda: house.get(key).is_success and "is damaged" in house.log.read_text())
        assert (house.get(key).status_code, house.get(None).status_code) == (200, 401)
        assert "is damaged" in one_line(house.run("keys", "ls"))
    finally:
        path.write_bytes(content)
    revoked = house.made()
    house.until(revoked, 200)


def test_keys_outlive_the_server_and_a_mounted_store_is_read(house: House, tmp_path: Path) -> None:
    key = house.made("--tenant", "a")
    mounted = tmp_path / "secret"
    mounted.mkdir()
    for name in ("keys.json", "pepper"):
        (mounted / name).write_bytes((house.server.state_dir / name).read_bytes())
    config = tmp_path / "headrace.yaml"
    config.write_text(f"auth: {{keys_store: {mounted}}}\nmodels: [{{id: m, engine: synthetic}}]")
    with running_server(config, tmp_path / "log") as server:
        other = House(server, config, config.with_name("log"))
        assert (other.get(key).status_code, other.get(None).status_code) == (200, 401)
    (mounted / "pepper").unlink()
    done = headrace("config", "check", "--config", str(config))
    assert done.returncode == 2
    assert "pepper is missing" in one_line(done)


def test_a_server_that_others_can_reach_needs_a_key_made_first(tmp_path: Path) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(
        f"server: {{host: 0.0.0.0, state_dir: {tmp_path / 'state'}}}\nmodels: [{{id: m, engine: synthetic}}]"
    )
    refused = headrace("config", "check", "--config", str(config))
    assert refused.returncode == 2
    assert "headrace keys create" in one_line(refused)
    assert headrace("keys", "create", "--config", str(config)).returncode == 0
    assert headrace("config", "check", "--config", str(config)).returncode == 0


def test_tokens_of_the_issuer_open_for_their_tenants_and_all_others_get_the_same_401(tmp_path: Path) -> None:
    jwks, config = tmp_path / "jwks.json", tmp_path / "headrace.yaml"
    jwks.write_text(key_file(jwk("p256", "k1"), jwk("rsa", "r1")))
    settings = {
        "auth": {
            "jwt": {
                "jwks_file": str(jwks),
                "audience": AUDIENCE,
                "subjects": [
                    {"subject": "system:serviceaccount:team-a:*", "tenant": "team-a"},
                    {"subject": "spiffe://example.org/ns/ops/*", "tenant": "ops", "scopes": ["inference", "admin"]},
                ],
            }
        },
        "models": [{"id": "m", "engine": "synthetic"}],
    }
    config.write_text(json.dumps(settings))
    team, ops, now = Issuer(), Issuer("rsa", "r1", "RS256"), int(time.time())
    with running_server(config, tmp_path / "log") as server:
        house = House(server, config, config.with_name("log"))
        assert house.get(team.token()).status_code == 200
        assert house.get(team.token(), "/admin/models").status_code == 403
        assert house.get(ops.token(sub="spiffe://example.org/ns/ops/sa/x"), "/admin/models").status_code == 200
        bad = [
            None,
            team.token(aud="others"),
            team.token(exp=now - 3600),
            team.token(sub="system:serviceaccount:team-b:app"),
            team.token(headers={"jwk": jwk("p256", "k1")}),
            Issuer(key_id="k9").token(),
            assembled({"alg": "none", "kid": "k1"}, {"sub": "x", "aud": AUDIENCE, "exp": now + 60}),
            team.token(padding="x" * 9000),
        ]
        answers = [house.get(token) for token in bad]
        assert {answer.status_code for answer in answers} == {401}
        assert len({(answer.content, *without_ids(answer).items()) for answer in answers}) == 1
        jwks.write_text(key_file(jwk("p256", "k2")))
        house.until(team.token(), 401)
        assert house.get(Issuer(key_id="k2").token()).status_code == 200
