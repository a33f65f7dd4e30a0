"""The artifact of a model: the media types that each family names, and a digest that follows from the files alone."""

import json
from typing import Any

import pytest

from headrace_models.digest import Sha256
from headrace_models.push.artifact import Layer, config_document, config_type, manifest_document
from headrace_models.push.contents import Role, WeightsFacts
from headrace_models.push.formats import ArtifactFormat
from headrace_models.seek_index import MEDIA_TYPE
from headrace_models.sources.oci_artifact import SEEK_INDEX_PATH, Packing, read_artifact
from headrace_models.sources.oci_manifest import OCI_MANIFEST, Manifest, parse_manifest

FACTS = WeightsFacts("safetensors", 1_234_567, "llama", 134_515_008, "bfloat16", 8192)
BARE = WeightsFacts("gguf", 99)
CONFIG_DIGEST = Sha256("f" * 64)


def layer(number: int, path: str, role: Role) -> Layer:
    return Layer(path, role, Sha256(f"{number:064x}"), 100 + number)


LAYERS = (
    layer(1, "model.safetensors", Role.WEIGHTS),
    layer(2, "config.json", Role.CONFIG),
    layer(3, "chat_template.jinja", Role.TEMPLATE),
    layer(4, "README.md", Role.DOCUMENT),
    layer(5, "LICENSE", Role.LICENCE),
    layer(6, SEEK_INDEX_PATH, Role.INDEX),
)


def manifest(form: ArtifactFormat, layers: tuple[Layer, ...] = LAYERS) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(manifest_document(form, b"{}", CONFIG_DIGEST, layers))
    return document


def config(form: ArtifactFormat, facts: WeightsFacts = FACTS) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(config_document(form, facts, LAYERS))
    return document


@pytest.mark.parametrize(
    ("form", "prefix", "types"),
    [
        (
            ArtifactFormat.MODELPACK,
            "application/vnd.cncf.model.",
            ["weight.v1.raw", "weight.config.v1.raw", "weight.config.v1.raw", "doc.v1.raw", "doc.v1.raw", "doc.v1.raw"],
        ),
        (
            ArtifactFormat.DOCKER,
            "application/vnd.docker.ai.",
            ["safetensors", "model.file", "chat.template.jinja", "model.file", "license", "model.file"],
        ),
    ],
)
def test_each_family_has_its_media_types_and_both_have_the_paths(
    form: ArtifactFormat, prefix: str, types: list[str]
) -> None:
    layers = manifest(form)["layers"]
    assert [entry["mediaType"] for entry in layers] == [prefix + kind for kind in types]
    for entry, expected in zip(layers, LAYERS, strict=True):
        assert (entry["digest"], entry["size"]) == (str(expected.digest), expected.size_bytes)
        assert entry["annotations"]["org.cncf.model.filepath"] == expected.path
        assert entry["annotations"]["org.opencontainers.image.title"] == expected.path


def test_gguf_has_a_media_type_of_its_own_at_docker_s_only() -> None:
    weights = (layer(1, "a.gguf", Role.WEIGHTS),)
    assert manifest(ArtifactFormat.DOCKER, weights)["layers"][0]["mediaType"] == "application/vnd.docker.ai.gguf.v3"
    packed = manifest(ArtifactFormat.MODELPACK, weights)["layers"][0]
    assert packed["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"


def test_the_manifest_says_what_it_is() -> None:
    packed, docker = manifest(ArtifactFormat.MODELPACK), manifest(ArtifactFormat.DOCKER)
    assert packed["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert "artifactType" not in docker
    for document, form in ((packed, ArtifactFormat.MODELPACK), (docker, ArtifactFormat.DOCKER)):
        assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_MANIFEST)
        assert document["config"] == {"mediaType": config_type(form), "digest": str(CONFIG_DIGEST), "size": 2}


def test_the_config_of_a_modelpack_is_what_its_schema_allows() -> None:
    assert config(ArtifactFormat.MODELPACK) == {
        "descriptor": {"family": "llama"},
        "modelfs": {"type": "layers", "diffIds": [str(one.digest) for one in LAYERS]},
        "config": {"format": "safetensors", "paramSize": "134.5m", "precision": "bfloat16"},
    }
    assert config(ArtifactFormat.MODELPACK, BARE)["config"] == {"format": "gguf"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (8_000_000_000, "8b"), (1_700_000_000, "1.7b"), (405_000, "405k"), (1_000_000_000_000, "1t")],
)
def test_parameters_are_counted_in_the_largest_unit(number: int, text: str) -> None:
    facts = WeightsFacts("safetensors", 1, num_parameters=number)
    assert config(ArtifactFormat.MODELPACK, facts)["config"]["paramSize"] == text


def test_the_config_of_docker_s_model_says_what_model_runner_shows() -> None:
    assert config(ArtifactFormat.DOCKER) == {
        "descriptor": {},
        "config": {
            "format": "safetensors",
            "architecture": "llama",
            "parameters": "134.52 M",
            "size": "1234567",
            "context_size": 8192,
            "safetensors": {"architecture": "llama", "parameter_count": "134.52 M"},
        },
        "rootfs": {"type": "rootfs", "diff_ids": [str(one.digest) for one in LAYERS]},
    }
    assert config(ArtifactFormat.DOCKER, BARE)["config"] == {"format": "gguf", "size": "99"}


@pytest.mark.parametrize("form", list(ArtifactFormat))
def test_our_reader_finds_the_model_and_its_pinned_index_in_it(form: ArtifactFormat) -> None:
    parsed = parse_manifest(manifest_document(form, b"{}", CONFIG_DIGEST, LAYERS), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    found = read_artifact(parsed)
    assert found.pinned_index == SEEK_INDEX_PATH
    assert {one.packing for one in found.layers} == {Packing.RAW}
    paths = {one.path: one.digest for one in found.layers}
    for expected in LAYERS:
        if expected.role not in {Role.DOCUMENT, Role.LICENCE}:
            assert paths[expected.path] == expected.digest


def test_only_the_index_says_that_it_is_one() -> None:
    for form in ArtifactFormat:
        kinds = [entry["annotations"].get("dev.headrace.content-type") for entry in manifest(form)["layers"]]
        assert kinds == [None] * 5 + [MEDIA_TYPE]
