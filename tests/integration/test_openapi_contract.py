"""Generated requests from our own OpenAPI document, against the server on the synthetic engine."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from headrace_server.domain import Operation
from tests.fakes.process import running_server

CONFIG = """
server: {header_hold_seconds: 1}
models:
  - {id: m, engine: synthetic}
telemetry: {access_log: false}
"""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
READ = ("/v1/models", "/v1/models/{model_id}", "/admin/models", "/admin/drain")
PROBES = ("/livez", "/readyz", "/startupz", "/version")
ACTIONS = tuple(f"/admin/models/{{model_id}}/{action}" for action in ("load", "unload", "pin", "unpin"))
PATHS = [
    *(("POST", path) for path in (*Operation, *ACTIONS)),
    *(("GET", path) for path in (*READ, *PROBES)),
]


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenApiSchema]:
    folder = tmp_path_factory.mktemp("contract")
    (folder / "headrace.yaml").write_text(CONFIG)
    with running_server(folder / "headrace.yaml", folder / "server.log") as server:
        yield schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_every_generated_request_gets_a_documented_answer(contract: OpenApiSchema, method: str, path: str) -> None:
    operation = contract[path][method]

    @given(case=operation.as_strategy())
    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def generated(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict) and case.body.get("model"):
            case.body["model"] = "m"  # else nearly all of them would end at the model's name
        case.call_and_validate(checks=CHECKS, timeout=30)

    generated()


def test_the_document_knows_every_path_of_the_contract(contract: OpenApiSchema) -> None:
    documented = set(contract.raw_schema["paths"])

    assert {operation.value for operation in Operation} <= documented
