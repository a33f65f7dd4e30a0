"""The bill of materials that lies in the image."""

import json
from importlib.metadata import distributions

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from docker.sbom import bill, debian_components, python_components

DPKG = "bash\t5.2.15-2+b7\tamd64\tinstalled\nold\t1:1.0\tall\tconfig-files\nzlib1g\t1:1.2.13\tamd64\tinstalled\n"


def test_debian_s_packages_are_those_that_are_installed() -> None:
    names = {part["purl"] for part in debian_components(DPKG)}
    assert len(names) == 2
    assert any("/zlib1g@1%3A1.2.13?arch=amd64" in str(name) for name in names)


def test_the_document_is_cyclonedx_and_about_the_application() -> None:
    document = bill(python_components(iter(distributions())), debian_components(DPKG))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    parts = document["components"]
    assert isinstance(parts, list)
    names = {part["name"] for part in parts}
    assert {"pydantic", "zlib1g"} <= names
    assert "headrace" not in names
    assert json.loads(json.dumps(document))["metadata"]["component"]["name"] == "headrace"


def test_the_same_content_is_the_same_document() -> None:
    first, second = (bill(python_components(iter(distributions())), debian_components(DPKG)) for _ in range(2))
    assert first == second
    other = bill(python_components(iter(distributions())), [])
    assert other["serialNumber"] != first["serialNumber"]


def test_a_document_that_is_none_is_seen() -> None:
    document = bill(python_components(iter(distributions())), [])
    del document["bomFormat"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_without_the_application_there_is_no_bill() -> None:
    with pytest.raises(StopIteration):
        bill([], debian_components(DPKG))
