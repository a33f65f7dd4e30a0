"""compose.yaml: valid, and in accord with the server's settings."""

import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings

VARIABLE_NAMES = {"endpoint_var", "model_var"}


@pytest.fixture
def text(repository: Path) -> str:
    return (repository / "compose.yaml").read_text()


@pytest.fixture
def document(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def without_models(document: dict[str, Any]) -> str:
    """The library knows the specification from before it had models."""
    known = {key: value for key, value in document.items() if key != "models"}
    known["services"] = {
        name: {key: value for key, value in service.items() if key != "models"}
        for name, service in document["services"].items()
    }
    return yaml.safe_dump(known)


def validate(text: str) -> None:
    """Raise ValueError where it is not by https://github.com/compose-spec/compose-spec."""
    compose_spec.PyOptions(apply_merge=True).from_yaml(text).validate()


def test_it_is_valid(document: dict[str, Any]) -> None:
    validate(without_models(document))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("read_only:", "readonly:"), ("45s", "soon"), ("profiles:\n", "profile:\n"), ("models:/var", "other:/var")],
)
def test_what_is_wrong_would_be_found(document: dict[str, Any], right: str, wrong: str) -> None:
    valid = without_models(document)
    assert right in valid
    with pytest.raises(ValueError, match=r"."):
        validate(valid.replace(right, wrong))


def test_bound_models_exist_and_are_bound_by_name(document: dict[str, Any]) -> None:
    bindings = [service["models"] for service in document["services"].values() if "models" in service]
    assert bindings
    for binding in bindings:
        assert set(binding) <= set(document["models"])
        assert all(set(variables) == VARIABLE_NAMES for variables in binding.values())
    assert all(model["model"] for model in document["models"].values())


def test_the_configuration_of_the_front_reads_the_variables_that_compose_sets(
    document: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "headrace.yaml"
    config.write_text(document["configs"]["front"]["content"])
    names = document["services"]["front"]["models"]["chat"]
    environ = {names["endpoint_var"]: "http://runner.example/engines/v1/", names["model_var"]: "ai/smollm2"}
    (model,) = load_settings(config=config, environ=environ).models
    assert model.upstream.url is not None
    assert model.upstream.url.startswith("http://runner.example/engines")
    assert model.upstream.upstream_model == "ai/smollm2"


@pytest.mark.parametrize("name", ["server", "gpu", "front"])
def test_a_server_gets_the_time_that_it_needs_to_drain(document: dict[str, Any], name: str) -> None:
    service = document["services"][name]
    settings = load_settings(environ=service["environment"])
    assert float(service["stop_grace_period"].removesuffix("s")) >= settings.server.drain_seconds + 10


def test_the_drain_is_the_default_s(document: dict[str, Any]) -> None:
    settings = load_settings(environ=document["services"]["server"]["environment"])
    assert settings.server.drain_seconds == Settings().server.drain_seconds


def test_prometheus_reads_the_port_that_serves_metrics(document: dict[str, Any]) -> None:
    settings = load_settings(environ=document["services"]["server"]["environment"])
    scrape = yaml.safe_load(document["configs"]["prometheus"]["content"])
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"server:{settings.server.metrics_port}"
    assert "monitoring" in document["services"]["prometheus"]["profiles"]


def test_volumes_lie_where_the_image_keeps_models_and_state(repository: Path, document: dict[str, Any]) -> None:
    dockerfile = (repository / "docker/Dockerfile").read_text()
    (inside, *_) = re.findall(r"^VOLUME (\[.*\])$", dockerfile, flags=re.MULTILINE)
    mounted = {volume.partition(":")[2] for volume in document["services"]["server"]["volumes"]}
    assert mounted == set(yaml.safe_load(inside))


def test_ports_are_published_on_loopback_only(document: dict[str, Any]) -> None:
    ports = [port for service in document["services"].values() for port in service["ports"]]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
