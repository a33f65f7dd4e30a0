"""Images in a registry: the manifest and the configuration are fetched and checked, and not a byte of a layer."""

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from headrace_models.digest import Sha256
from headrace_models.errors import DigestMismatch, SourceUnavailable
from headrace_models.locations import OciLocation
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.oci_registry import Registry, media_type_of
from headrace_server.image.choosing import check_platform, choose_image
from headrace_server.image.description import Image, Platform
from headrace_server.image.documents import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Manifest,
    parse_config,
    parse_document,
)
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.layers import described_layers

_MAX_INDEXES = 4


def registry_options(environ: Mapping[str, str], insecure_hosts: frozenset[str]) -> SourceOptions:
    """How the registry is spoken to; nothing is spooled."""
    return SourceOptions(Path(tempfile.gettempdir()), insecure_hosts, environ=environ)


def read_remote(location: OciLocation, options: SourceOptions, platform: Platform | None) -> Image:
    """Describe an image for the platform, or this machine's. Raises ImageUnreadable and what `Registry` raises."""
    with closing(Registry(location, options)) as registry:
        manifest, digest = _manifest(registry, platform)
        config = parse_config(_blob(registry, manifest.config))
    check_platform(config.platform, platform)
    layers = described_layers(manifest, config, lambda _layer, _compression: None)
    return Image(str(location), layers, config.platform, digest)


def _manifest(registry: Registry, platform: Platform | None) -> tuple[Manifest, Sha256]:
    document, digest = registry.document()
    for _ in range(_MAX_INDEXES):
        found = parse_document(document.data, media_type_of(document))
        if isinstance(found, Manifest):
            return found, digest
        document, digest = registry.document(choose_image(found, platform).digest)
    raise ImageUnreadable("indexes are nested too deeply")


def _blob(registry: Registry, descriptor: Descriptor) -> bytes:
    """The configuration. Raises DigestMismatch, too."""
    if not 0 < descriptor.size_bytes <= MAX_DOCUMENT_BYTES:
        raise ImageUnreadable(f"the configuration has {descriptor.size_bytes} bytes, which it cannot have")
    data = bytearray()
    with registry.read_blob(descriptor.digest, descriptor.size_bytes, 0, descriptor.size_bytes) as body:
        while block := body.read(descriptor.size_bytes):
            data += block
    if len(data) < descriptor.size_bytes:
        raise SourceUnavailable("the configuration ended early")
    digest = hashlib.sha256(data).hexdigest()
    if digest != descriptor.digest.hex:
        raise DigestMismatch(f"the configuration has the digest sha256:{digest}, not {descriptor.digest}")
    return bytes(data)
