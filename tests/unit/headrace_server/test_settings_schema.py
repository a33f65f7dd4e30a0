"""What the configuration allows, beyond types."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from headrace_models.trust import Trust
from headrace_server.runtime import queue_options
from headrace_server.scheduling.options import QueueOptions
from headrace_server.settings.access import AuthMode
from headrace_server.settings.schema import Settings, is_loopback


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def model(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "engine": "synthetic", **fields}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_is_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org", "128.0.0.1"])
def test_everything_else_is_beyond_it(host: str) -> None:
    assert not is_loopback(host)


JWT = {"jwks_file": "/j", "audience": "us", "tenant_claim": "org"}


def test_mode_keys_needs_somewhere_that_keys_can_come_from() -> None:
    with pytest.raises(ValidationError, match=r"auth\.mode: keys needs"):
        settings(auth={"mode": "keys", "keys_store": False})
    for source in ({"keys_store": True}, {"keys_store": "/mounted"}, {"keys_file": "/k"}, {"jwt": JWT}):
        assert settings(auth={"mode": "keys", "keys_store": False, **source}).auth.mode is AuthMode.KEYS


@pytest.mark.parametrize(
    ("auth", "names_keys"),
    [
        ({}, False),
        ({"mode": "none", "keys_store": "/s"}, False),
        ({"mode": "keys"}, True),
        ({"keys_file": "/k"}, True),
        ({"jwt": JWT}, True),
    ],
)
def test_the_configuration_itself_may_say_that_keys_are_needed(auth: dict[str, Any], names_keys: bool) -> None:
    assert settings(auth=auth).auth.names_keys is names_keys


def test_a_store_of_keys_may_be_left_out_or_lie_elsewhere() -> None:
    assert settings().auth.keys_store is True
    assert settings(auth={"keys_store": False}).auth.keys_store is False
    assert settings(auth={"keys_store": "/run/secrets/headrace"}).auth.keys_store == Path("/run/secrets/headrace")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"jwks_file": None}, "needs jwks_file"),
        ({"audience": None}, "needs an audience"),
        ({"audience": ""}, "audience"),
        ({"tenant_claim": None}, "needs subjects or tenant_claim"),
        ({"algorithms": []}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"subjects": [{"subject": "a"}]}, "tenant"),
        ({"subjects": [{"subject": "", "tenant": "a"}]}, "subject"),
        ({"subjects": [{"subject": "a", "tenant": "a b"}]}, "tenant"),
        ({"subjects": [{"subject": "a", "tenant": "a", "scopes": ["root"]}]}, "scopes"),
    ],
)
def test_tokens_are_taken_with_everything_that_makes_them_safe_or_not_at_all(
    changes: dict[str, Any], complaint: str
) -> None:
    assert settings(auth={"jwt": JWT}).auth.jwt.algorithms == ("RS256", "PS256", "ES256", "ES384", "EdDSA")
    with pytest.raises(ValidationError, match=complaint):
        settings(auth={"jwt": {**JWT, **changes}})


def test_settings_survive_being_written_and_read() -> None:
    for written in (settings(), settings(auth={"jwt": JWT}, tenants=[{"id": "a"}])):
        assert Settings.model_validate(written.model_dump()) == written
        assert Settings.model_validate(written.model_dump(mode="json")) == written


def test_a_tenant_is_there_once_only() -> None:
    assert [tenant.id for tenant in settings(tenants=[{"id": "a"}, {"id": "b"}]).tenants] == ["a", "b"]
    with pytest.raises(ValidationError, match="'a' is there twice"):
        settings(tenants=[{"id": "a"}, {"id": "b"}, {"id": "a"}])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", ""),
        ("id", "a" * 65),
        ("id", "a b"),
        ("id", "-a"),
        ("id", "(others)"),
        ("weight", 0),
        ("weight", -1),
        ("weight", float("inf")),
        ("weight", float("nan")),
        ("classes", []),
        ("classes", ["urgent"]),
        ("models", ["a b"]),
        ("max_concurrency", 0),
        ("tokens_per_minute", 0),
        ("queue_share", 0),
        ("queue_share", 1.1),
    ],
)
def test_terms_of_a_tenant_that_make_no_sense_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"tenants\.0\.{key}"):
        settings(tenants=[{"id": "a", key: value}])


def test_a_class_keeps_its_other_defaults_when_one_key_is_set() -> None:
    classes = settings(scheduling={"classes": {"interactive": {"deadline_seconds": 5}}}).scheduling.classes
    assert (classes.interactive.max_wait_seconds, classes.interactive.deadline_seconds) == (1.0, 5.0)
    assert (classes.standard.max_wait_seconds, classes.batch.max_wait_seconds) == (120.0, None)


@pytest.mark.parametrize(
    "models",
    [
        [model("a"), model("a")],
        [model("a", aliases=["a"])],
        [model("a", aliases=["x", "x"])],
        [model("a", aliases=["b"]), model("b")],
        [model("a", aliases=["x"]), model("b", aliases=["x"])],
    ],
)
def test_a_model_name_is_used_once_only(models: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="is used twice"):
        settings(models=models)


def test_different_names_may_differ_in_case_only() -> None:
    assert len(settings(models=[model("a", aliases=["A"]), model("b")]).models) == 2


@pytest.mark.parametrize("name", ["", " ", "-a", ".a", "a b", "a\n", "é", "a" * 201, "a'b", '"'])
def test_a_model_name_is_plain(name: str) -> None:
    with pytest.raises(ValidationError):
        settings(models=[model(name)])
    with pytest.raises(ValidationError):
        settings(models=[model("fine", aliases=[name])])


@pytest.mark.parametrize("name", ["a", "org/Model-7B.Q4:tag@rev_1", "9", "a" * 200])
def test_the_names_that_registries_use_are_allowed(name: str) -> None:
    assert settings(models=[model(name)]).models[0].id == name


def test_each_engine_needs_what_it_runs_on() -> None:
    with pytest.raises(ValidationError, match="'a' needs a source"):
        settings(models=[{"id": "a"}])
    with pytest.raises(ValidationError, match=r"'a' needs upstream\.url"):
        settings(models=[{"id": "a", "engine": "upstream"}])
    settings(
        models=[{"id": "a", "source": "/m"}, model("b"), {"id": "c", "engine": "upstream", "upstream": {"url": "u"}}]
    )


@pytest.mark.parametrize("host", ["models", "models.example:8080", "10.0.0.1:80", "[::1]:80", "my_host", "a"])
def test_a_host_may_be_named_with_or_without_its_port(host: str) -> None:
    assert settings(cache={"insecure_hosts": [host]}).cache.insecure_hosts == (host,)


def test_trust_is_required_of_weights_that_are_loaded_here_only() -> None:
    assert settings(models=[{"id": "a", "source": "/m"}]).models[0].require_trust is Trust.NONE
    assert (
        settings(models=[{"id": "a", "source": "/m", "require_trust": "chunk"}]).models[0].require_trust is Trust.CHUNK
    )
    with pytest.raises(ValidationError, match="require_trust"):
        settings(models=[{"id": "a", "source": "/m", "require_trust": "much"}])
    with pytest.raises(ValidationError, match="require_trust means nothing"):
        settings(models=[model("a", require_trust="file")])


def test_certificate_and_key_go_together() -> None:
    with pytest.raises(ValidationError, match="go together"):
        settings(server={"tls": {"cert_file": "/c"}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("server", "port", -1),
        ("server", "port", 65536),
        ("server", "max_body_bytes", 0),
        ("server", "body_timeout_seconds", 0),
        ("server", "header_hold_seconds", -1),
        ("server", "stalled_client_seconds", 0),
        ("cache", "max_bytes", 0),
        ("cache", "max_bytes", "0 GiB"),
        ("cache", "max_bytes", "-1 GiB"),
        ("cache", "max_bytes", "1 parsec"),
        ("cache", "max_connections", 0),
        ("cache", "bytes_per_second", 0),
        ("cache", "insecure_hosts", ["http://models.example"]),
        ("cache", "insecure_hosts", ["models.example/path"]),
        ("cache", "insecure_hosts", ["user@models.example"]),
        ("cache", "insecure_hosts", ["models.example:port"]),
        ("cache", "insecure_hosts", [""]),
        ("scheduling", "max_requests", 0),
        ("scheduling", "max_tokens", 0),
        ("scheduling", "max_bytes", "0 GiB"),
        ("scheduling", "slot_limit", 0),
        ("scheduling", "interactive_reserve", 0.51),
        ("scheduling", "interactive_reserve", -0.1),
        ("scheduling", "target_step_seconds", 0),
        ("scheduling", "default_class", "urgent"),
        ("scheduling", "classes", {"batch": {"max_wait_seconds": 0}}),
        ("telemetry", "log_level", "loud"),
        ("telemetry", "log_format", "xml"),
    ],
)
def test_values_out_of_range_are_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        settings(**{section: {key: value}})


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    upstream = {"url": "http://h", "api_key": "s3cret"}
    shown = settings(models=[{"id": "a", "engine": "upstream", "upstream": upstream}])
    assert "s3cret" not in json.dumps(shown.model_dump(mode="json"))
    assert "s3cret" not in repr(shown)
    key = shown.models[0].upstream.api_key
    assert key is not None
    assert key.get_secret_value() == "s3cret"


def sections(section: type[BaseModel] = Settings) -> set[type[BaseModel]]:
    found = {section}
    for field in section.model_fields.values():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= sections(part)
    return found


@pytest.mark.parametrize("section", sorted(sections(), key=str))
def test_every_section_refuses_unknown_keys_and_never_changes(section: type[BaseModel]) -> None:
    assert section.model_config.get("extra") == "forbid"
    assert section.model_config.get("frozen") is True


@pytest.mark.parametrize(
    ("written", "num_bytes"), [(5, 5), ("5", 5), ("1KiB", 1024), ("3GiB", 3 * 1024**3), ("1.5 GB", 1_500_000_000)]
)
def test_a_number_of_bytes_can_have_a_unit(written: object, num_bytes: int) -> None:
    settings = Settings.model_validate({"engine": {"memory_budget_bytes": written}})
    assert settings.engine.memory_budget_bytes == num_bytes


def test_a_queue_has_the_same_defaults_whoever_makes_it() -> None:
    """What is measured with nothing tuned is what a server without a configuration does."""
    assert queue_options(settings().scheduling) == QueueOptions()
