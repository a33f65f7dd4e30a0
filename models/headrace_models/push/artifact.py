"""The artifact that a model becomes: media types, annotations, config and manifest. Pure, and without a time or a name
of this machine, so that the same files make the same digest.

One layer is one file, as it is: layers that are not compressed can be read in ranges. Two families:

- MODELPACK, https://github.com/modelpack/model-spec: read by modctl and the Model CSI driver, by Docker Model Runner,
  and, by their `title` annotations, by ORAS, Podman and CRI-O's artifact mounts.
- DOCKER, https://github.com/docker/model-spec with a layer for each file (config 0.2): read by Docker Model Runner.

One manifest has one config, so it is one of them. The seek index is a layer of the family's plainest type, which an
annotation names: one digest pins it with the weights, readers that do not know it unpack a small file more, and
registries that allow known media types only let it through.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from headrace_models.digest import Sha256
from headrace_models.push.contents import Role, WeightsFacts
from headrace_models.push.formats import ArtifactFormat
from headrace_models.seek_index import MEDIA_TYPE as SEEK_INDEX_TYPE
from headrace_models.sources.oci_artifact import CONTENT_TYPE_ANNOTATION
from headrace_models.sources.oci_manifest import OCI_MANIFEST

_MODELPACK = "application/vnd.cncf.model."
_DOCKER = "application/vnd.docker.ai."
_FILEPATH, _TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Layer:
    """A file in the manifest."""

    path: str
    role: Role
    digest: Sha256
    size_bytes: int


def config_type(form: ArtifactFormat) -> str:
    """The media type of the artifact's config."""
    match form:
        case ArtifactFormat.MODELPACK:
            return f"{_MODELPACK}config.v1+json"
        case ArtifactFormat.DOCKER:
            return f"{_DOCKER}model.config.v0.2+json"
        case _:
            assert_never(form)


def config_document(form: ArtifactFormat, facts: WeightsFacts, layers: Sequence[Layer]) -> bytes:
    """The artifact's config: what the model is, and the digests of its layers."""
    digests = [str(layer.digest) for layer in layers]
    match form:
        case ArtifactFormat.MODELPACK:
            return _json(_modelpack_config(facts, digests))
        case ArtifactFormat.DOCKER:
            return _json(_docker_config(facts, digests))
        case _:
            assert_never(form)


def manifest_document(form: ArtifactFormat, config: bytes, config_digest: Sha256, layers: Sequence[Layer]) -> bytes:
    """The manifest."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": config_type(form), "digest": str(config_digest), "size": len(config)},
        "layers": [_descriptor(form, layer) for layer in layers],
    }
    if form is ArtifactFormat.MODELPACK:
        document["artifactType"] = f"{_MODELPACK}manifest.v1+json"
    return _json(document)


def _descriptor(form: ArtifactFormat, layer: Layer) -> dict[str, object]:
    annotations = {_FILEPATH: layer.path, _TITLE: layer.path}
    if layer.role is Role.INDEX:
        annotations[CONTENT_TYPE_ANNOTATION] = SEEK_INDEX_TYPE
    return {
        "mediaType": _modelpack_type(layer) if form is ArtifactFormat.MODELPACK else _docker_type(layer),
        "digest": str(layer.digest),
        "size": layer.size_bytes,
        "annotations": annotations,
    }


def _modelpack_type(layer: Layer) -> str:
    match layer.role:
        case Role.WEIGHTS:
            return f"{_MODELPACK}weight.v1.raw"
        case Role.CONFIG | Role.TEMPLATE:
            return f"{_MODELPACK}weight.config.v1.raw"
        case Role.DOCUMENT | Role.LICENCE | Role.INDEX:
            return f"{_MODELPACK}doc.v1.raw"
        case _:
            assert_never(layer.role)


def _docker_type(layer: Layer) -> str:
    match layer.role:
        case Role.WEIGHTS:
            return f"{_DOCKER}gguf.v3" if layer.path.endswith(".gguf") else f"{_DOCKER}safetensors"
        case Role.TEMPLATE:
            return f"{_DOCKER}chat.template.jinja"
        case Role.LICENCE:
            return f"{_DOCKER}license"
        case Role.CONFIG | Role.DOCUMENT | Role.INDEX:
            return f"{_DOCKER}model.file"
        case _:
            assert_never(layer.role)


def _modelpack_config(facts: WeightsFacts, digests: Sequence[str]) -> dict[str, object]:
    """https://github.com/modelpack/model-spec/blob/main/docs/config.md; nothing may stand in it beyond that."""
    return {
        "descriptor": _known({"family": facts.family}),
        "modelfs": {"type": "layers", "diffIds": list(digests)},
        "config": _known(
            {
                "format": facts.weights,
                "paramSize": None if facts.num_parameters is None else _short_count(facts.num_parameters),
                "precision": facts.precision,
            }
        ),
    }


def _docker_config(facts: WeightsFacts, digests: Sequence[str]) -> dict[str, object]:
    """https://github.com/docker/model-spec/blob/main/config.md, and the `rootfs` that Docker Model Runner writes."""
    parameters = None if facts.num_parameters is None else f"{facts.num_parameters / 1e6:.2f} M"
    details = _known({"architecture": facts.family, "parameter_count": parameters})
    return {
        "descriptor": {},
        "config": _known(
            {
                "format": facts.weights,
                "architecture": facts.family,
                "parameters": parameters,
                "size": str(facts.weight_bytes),
                "context_size": facts.max_length,
                facts.weights: details or None,
            }
        ),
        "rootfs": {"type": "rootfs", "diff_ids": list(digests)},
    }


def _short_count(number: int) -> str:
    """`134.5m`, `8b`."""
    for unit, size in (("t", 10**12), ("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return str(number)


def _known(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
