"""Compose's `models:` bindings: which variables are read, and what is said when they are not as they should be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_server.catalog import plan_models
from headrace_server.errors import UsageError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings, UpstreamArguments

RUNNER = "http://model-runner.docker.internal/engines/v1/"
LLM = {"LLM_URL": RUNNER, "LLM_MODEL": "ai/smollm2"}


def loaded(directory: Path, environ: dict[str, str], *models: dict[str, Any]) -> Settings:
    config = directory / "headrace.yaml"
    config.write_text(yaml.safe_dump({"models": list(models)}), encoding="utf-8")
    return load_settings(config=config, environ=environ)


def bound(name: str = "chat", **upstream: object) -> dict[str, Any]:
    return {"id": name, "engine": "upstream", "upstream": upstream}


def upstream_of(directory: Path, environ: dict[str, str], **upstream: object) -> UpstreamArguments:
    model = {"id": "chat", "engine": "upstream", "upstream": upstream}
    return loaded(directory, environ, model).models[0].upstream


@pytest.mark.parametrize(
    ("binding", "endpoint_var", "model_var"),
    [
        ("llm", "LLM_URL", "LLM_MODEL"),
        ("embedding-model", "EMBEDDING_MODEL_URL", "EMBEDDING_MODEL_MODEL"),
        ("ai_model", "AI_MODEL_URL", "AI_MODEL_MODEL"),
        ("qwen3.4b", "QWEN3.4B_URL", "QWEN3.4B_MODEL"),
    ],
)
def test_a_name_stands_for_the_variables_that_compose_makes_of_it(
    tmp_path: Path, binding: str, endpoint_var: str, model_var: str
) -> None:
    upstream = upstream_of(tmp_path, {endpoint_var: RUNNER, model_var: "ai/smollm2"}, binding=binding)
    assert (upstream.url, upstream.upstream_model) == (RUNNER, "ai/smollm2")


def test_variables_that_the_service_named_itself_are_read_by_name(tmp_path: Path) -> None:
    environ = {"AI_MODEL_URL": RUNNER, "AI_MODEL_NAME": "ai/qwen3"}
    upstream = upstream_of(tmp_path, environ, endpoint_var="AI_MODEL_URL", model_var="AI_MODEL_NAME")
    assert (upstream.url, upstream.upstream_model) == (RUNNER, "ai/qwen3")


def test_what_else_the_configuration_says_of_the_model_stays(tmp_path: Path) -> None:
    upstream = upstream_of(tmp_path, LLM, binding="llm", api_key="sk-1", connect_timeout_seconds=2)
    assert (upstream.api_key is not None, upstream.connect_timeout_seconds) == (True, 2.0)


def test_several_models_have_a_binding_each(tmp_path: Path) -> None:
    environ = {**LLM, "EMBED_URL": "http://other:1/engines/v1/", "EMBED_MODEL": "ai/all-minilm"}
    models = loaded(tmp_path, environ, bound("chat", binding="llm"), bound("embed", binding="embed")).models
    assert [model.upstream.upstream_model for model in models] == ["ai/smollm2", "ai/all-minilm"]


def test_the_configuration_in_force_can_be_read_again(tmp_path: Path) -> None:
    settings = loaded(tmp_path, LLM, bound(binding="llm"))
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_bound_model_is_planned_with_its_address(tmp_path: Path) -> None:
    (planned,) = plan_models(loaded(tmp_path, LLM, bound(binding="llm")))
    assert planned.source == RUNNER


def test_variables_that_nothing_is_bound_to_mean_nothing(tmp_path: Path) -> None:
    assert load_settings(environ=LLM).models == ()
    model = {"id": "m", "engine": "synthetic"}
    assert loaded(tmp_path, LLM, model) == loaded(tmp_path, {}, model)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, "LLM_URL and LLM_MODEL are not set or blank"),
        ({"LLM_URL": RUNNER}, "LLM_MODEL is not set or blank"),
        ({"LLM_MODEL": "ai/smollm2"}, "LLM_URL is not set or blank"),
        ({"LLM_URL": " ", "LLM_MODEL": "ai/smollm2"}, "LLM_URL is not set or blank"),
        ({"LLM_URL": RUNNER, "LLM_MODEL": ""}, "LLM_MODEL is not set or blank"),
    ],
)
def test_half_a_pair_is_named(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match="model 'chat'") as raised:
        upstream_of(tmp_path, environ, binding="llm")
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "model-runner.docker.internal/engines/v1/",
        "ftp://host/engines/v1/",
        "http:///engines/v1/",
        "http://me:secret@host/engines/v1/",
        "http://host/engines/v1/?key=secret",
        "http://host:port/",
        "http://host:0/",
        "http://[::1/",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="LLM_URL is no") as raised:
        upstream_of(tmp_path, {**LLM, "LLM_URL": url}, binding="llm")
    assert url not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        ({"binding": "llm", "url": RUNNER}, "leave out url"),
        ({"binding": "llm", "upstream_model": "x"}, "leave out url and upstream_model"),
        ({"binding": "llm", "endpoint_var": "A", "model_var": "B"}, "not both"),
        ({"endpoint_var": "A"}, "go together"),
        ({"model_var": "B"}, "go together"),
        ({"binding": ""}, "binding"),
        ({"endpoint_var": "A B", "model_var": "B"}, "endpoint_var"),
        ({}, r"upstream\.url or upstream\.binding"),
    ],
)
def test_a_binding_that_is_unclear_is_refused(tmp_path: Path, upstream: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        upstream_of(tmp_path, LLM, **upstream)


def test_a_binding_of_a_model_that_runs_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs engine: upstream"):
        loaded(tmp_path, LLM, {"id": "chat", "source": "/m", "upstream": {"binding": "llm"}})
