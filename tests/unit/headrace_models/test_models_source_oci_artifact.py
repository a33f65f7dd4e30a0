"""Which layers of an artifact are a model's files; manifests that are not what they should be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnusable, UnsafeModel
from headrace_models.seek_index import MEDIA_TYPE
from headrace_models.sources.oci_artifact import Artifact, Packing, choose_entry, read_artifact
from headrace_models.sources.oci_manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    ManifestIndex,
    parse_manifest,
)

DOCKER = "application/vnd.docker.ai."
MODELPACK = "application/vnd.cncf.model."
DIGEST = "sha256:" + "0" * 64


def descriptor(
    media_type: str, number: int = 1, *, path: str | None = None, title: str | None = None
) -> dict[str, object]:
    annotations = {"org.cncf.model.filepath": path, "org.opencontainers.image.title": title}
    return {
        "mediaType": media_type,
        "digest": f"sha256:{number:064x}",
        "size": 10 + number,
        "annotations": {name: text for name, text in annotations.items() if text is not None},
    }


def manifest(*layers: dict[str, object], **changes: object) -> bytes:
    config = {"mediaType": f"{DOCKER}model.config.v0.1+json", "digest": DIGEST, "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers), **changes}
    return json.dumps(document).encode()


def artifact(*layers: dict[str, object]) -> Artifact:
    parsed = parse_manifest(manifest(*layers), OCI_MANIFEST)
    assert isinstance(parsed, Manifest)
    return read_artifact(parsed)


def paths(*layers: dict[str, object]) -> list[str]:
    return [layer.path for layer in artifact(*layers).layers]


def test_a_docker_model_is_its_safetensors_and_a_tar_of_configs() -> None:
    found = artifact(
        descriptor(f"{DOCKER}safetensors", 1),
        descriptor(f"{DOCKER}vllm.config.tar", 2),
        descriptor(f"{DOCKER}license", 3),
        descriptor(f"{DOCKER}mmproj", 4),
    )
    assert [(layer.path, layer.packing) for layer in found.layers] == [
        ("model.safetensors", Packing.RAW),
        ("", Packing.TAR),
    ]
    assert found.layers[0].digest == Sha256(f"{1:064x}")
    assert found.layers[0].size_bytes == 11


def test_several_weights_without_a_path_are_numbered_in_the_order_of_the_layers() -> None:
    layers = [descriptor(f"{DOCKER}safetensors", number) for number in (1, 2, 3)]
    assert paths(*layers) == [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


def test_a_docker_model_with_a_layer_per_file_keeps_its_paths() -> None:
    assert paths(
        descriptor(f"{DOCKER}safetensors", 1, path="text_encoder/model.safetensors"),
        descriptor(f"{DOCKER}model.file", 2, path="config.json"),
        descriptor(f"{DOCKER}model.file", 3),
        descriptor(f"{DOCKER}chat.template.jinja", 4),
    ) == ["text_encoder/model.safetensors", "config.json", "chat_template.jinja"]


def test_a_gguf_model_is_listed_so_that_it_can_be_refused_by_name() -> None:
    assert paths(descriptor(f"{DOCKER}gguf.v3")) == ["model.gguf"]


@pytest.mark.parametrize("family", ["cncf", "cnai"])
def test_a_modelpack_is_its_weights_and_configs_without_code_and_documents(family: str) -> None:
    prefix = f"application/vnd.{family}.model."
    found = artifact(
        descriptor(f"{prefix}weight.v1.raw", 1, path="model.safetensors"),
        descriptor(f"{prefix}weight.config.v1.raw", 2, path="config.json"),
        descriptor(f"{prefix}weight.v1.tar", 3, path="shards"),
        descriptor(f"{prefix}weight.config.v1.tar+gzip", 4),
        descriptor(f"{prefix}weight.v1.tar+zstd", 5),
        descriptor(f"{prefix}code.v1.raw", 6, path="modeling.py"),
        descriptor(f"{prefix}doc.v1.raw", 7, path="README.md"),
        descriptor(f"{prefix}doc.v1.tar", 8, path="LICENSE"),
        descriptor(f"{prefix}dataset.v1.raw", 9, path="data.json"),
    )
    assert [(layer.path, layer.packing) for layer in found.layers] == [
        ("model.safetensors", Packing.RAW),
        ("config.json", Packing.RAW),
        ("", Packing.TAR),
        ("", Packing.TAR_GZIP),
        ("", Packing.TAR_ZSTD),
    ]


@pytest.mark.parametrize("path", ["merges.txt", "vocab.txt", "chat_template.jinja", "sub/vocab.txt"])
def test_what_a_tokenizer_needs_is_taken_even_if_it_was_filed_under_documents(path: str) -> None:
    assert paths(descriptor(f"{MODELPACK}doc.v1.raw", path=path)) == [path]


def test_files_with_titles_are_taken_from_any_artifact() -> None:
    assert paths(
        descriptor("application/octet-stream", 1, title="model.safetensors"),
        descriptor("application/json", 2, title="./config.json"),
        descriptor("application/json", 3),
    ) == ["model.safetensors", "config.json"]


def test_a_directory_that_was_packed_for_oras_is_an_archive() -> None:
    layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", title="model")
    layer["annotations"] = {"io.deis.oras.content.unpack": "true", "org.opencontainers.image.title": "model"}
    assert artifact(layer).layers[0].packing is Packing.TAR_GZIP


def test_the_filepath_goes_before_the_title() -> None:
    assert paths(descriptor(f"{MODELPACK}weight.v1.raw", path="a.safetensors", title="b")) == ["a.safetensors"]


@pytest.mark.parametrize("title", [None, "headrace.seekindex.json", "other.json"])
def test_the_seek_index_is_pinned(title: str | None) -> None:
    found = artifact(descriptor(f"{DOCKER}safetensors", 1), descriptor(MEDIA_TYPE, 2, title=title))
    assert found.pinned_index == (title or "headrace.seekindex.json")
    assert found.layers[-1].path == found.pinned_index


def test_two_seek_indexes_are_refused() -> None:
    with pytest.raises(UnsafeModel, match="more than one seek index"):
        artifact(descriptor(f"{DOCKER}safetensors"), descriptor(MEDIA_TYPE, 2), descriptor(MEDIA_TYPE, 3))


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\\b", "a//b", ".."])
def test_a_path_that_escapes_refuses_the_model(path: str) -> None:
    with pytest.raises(UnsafeModel, match="a file name"):
        artifact(descriptor(f"{DOCKER}safetensors", path=path))


def test_an_image_with_programs_is_no_model() -> None:
    with pytest.raises(SourceUnusable, match="holds no model: its type is 'application/vnd.docker.ai"):
        artifact(descriptor("application/vnd.oci.image.layer.v1.tar+gzip"), descriptor(MEDIA_TYPE, 2))


def test_the_same_layer_twice_is_its_files_once() -> None:
    tar = descriptor(f"{DOCKER}vllm.config.tar", 2)
    assert len(artifact(tar, tar).layers) == 1


def index_of(*kinds: str) -> ManifestIndex:
    entries = [
        {"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 5, "artifactType": kind}
        for number, kind in enumerate(kinds, start=1)
    ]
    data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    parsed = parse_manifest(data, OCI_INDEX)
    assert isinstance(parsed, ManifestIndex)
    return parsed


def test_the_only_artifact_of_an_index_is_the_model() -> None:
    assert choose_entry(index_of("")).digest == Sha256(f"{1:064x}")


def test_of_several_artifacts_the_one_that_says_so_is_the_model() -> None:
    index = index_of("application/vnd.example.sbom", "application/vnd.cncf.model.manifest.v1+json")
    assert choose_entry(index).digest == Sha256(f"{2:064x}")


@pytest.mark.parametrize("kinds", [("", ""), ("application/vnd.cncf.model.x", "application/vnd.docker.ai.x"), ()])
def test_an_index_that_is_not_clear_is_refused_with_its_candidates(kinds: tuple[str, ...]) -> None:
    with pytest.raises(SourceUnusable) as raised:
        choose_entry(index_of(*kinds))
    assert all(f"sha256:{number:064x}" in str(raised.value) for number in range(1, len(kinds) + 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (manifest(schemaVersion=1), "schema version"),
        (manifest(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"), "not supported"),
        (manifest(mediaType=["x"]), "not supported"),
        (manifest(manifests=[]), "index too"),
        (manifest(layers=None), "no layers"),
        (manifest(config=None), "malformed descriptor"),
        (manifest({**descriptor("x"), "size": -1}), "malformed descriptor"),
        (manifest({**descriptor("x"), "size": True}), "malformed descriptor"),
        (manifest({**descriptor("x"), "size": 1.5}), "malformed descriptor"),
        (manifest({**descriptor("x"), "size": 1 << 60}), "malformed descriptor"),
        (manifest({**descriptor("x"), "digest": "sha512:" + "0" * 128}), "cannot be checked.*sha512"),
        (manifest({**descriptor("x"), "digest": DIGEST.upper()}), "cannot be checked"),
        (manifest({**descriptor("x"), "annotations": {"a": 1}}), "malformed annotations"),
        (manifest(*[descriptor("x")] * 10_001), "at most 10000"),
    ],
)
def test_malformed_manifests_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SourceUnusable, match=reason):
        parse_manifest(data, OCI_MANIFEST)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_without_a_type_of_its_own_a_manifest_is_what_the_answer_says(media_type: str) -> None:
    document = json.loads(manifest(descriptor(f"{DOCKER}safetensors")))
    del document["mediaType"]
    assert isinstance(parse_manifest(json.dumps(document).encode(), media_type), Manifest)


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_lists_of_docker_are_indexes(media_type: str) -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": []}).encode()
    assert parse_manifest(data, "text/plain") == ManifestIndex(())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["layers", "config", "size", "digest"]), inner),
    )
)
def test_no_document_ends_in_anything_but_a_manifest_or_a_refusal(document: object) -> None:
    data = json.dumps({"schemaVersion": 2, "config": document, "layers": [document]}).encode()
    with pytest.raises(SourceUnusable):
        parse_manifest(data, OCI_MANIFEST)
