"""Images in an OCI layout: a directory, or the same files in an archive.

Documents are checked against their digests. Layers are not read: their sizes are compared, and of gzip layers the last
four bytes are looked at. https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
"""

import hashlib
from collections.abc import Sequence
from functools import partial

from headrace_models.digest import Sha256
from headrace_server.image.choosing import check_platform, choose_image
from headrace_server.image.description import Compression, Image, Platform
from headrace_server.image.documents import (
    MAX_DOCUMENT_BYTES,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_document,
)
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.files import Files, whole
from headrace_server.image.layers import described_layers, gzip_unpacked_bytes

INDEX = "index.json"

_LAYOUT = "oci-layout"
_FULL_NAME = "io.containerd.image.name"
_MAX_SHOWN = 8
_MAX_INDEXES = 4


def read_layout(files: Files, name: str, tag: str, platform: Platform | None) -> Image:
    """Describe the image with this tag, or the only one, for the platform. Raises ImageUnreadable."""
    if files.size_of(_LAYOUT) is None:
        raise ImageUnreadable(f"{name} has {INDEX} but no file called {_LAYOUT}: it is no OCI layout")
    top = parse_document(whole(files, INDEX, max_bytes=MAX_DOCUMENT_BYTES))
    if isinstance(top, Manifest):
        raise ImageUnreadable(f"{name}: {INDEX} is a manifest and no index")
    entry = _tagged(top, tag, name, platform)
    found = _document(files, entry)
    for _ in range(_MAX_INDEXES):
        if isinstance(found, Manifest):
            return _described(files, name, entry, found, platform)
        entry = choose_image(found, platform)
        found = _document(files, entry)
    raise ImageUnreadable(f"{name}: indexes are nested too deeply")


def _described(files: Files, name: str, entry: Descriptor, manifest: Manifest, platform: Platform | None) -> Image:
    config = parse_config(_blob(files, manifest.config))
    check_platform(config.platform, platform)
    for layer in manifest.layers:
        _check_size(files, layer)
    layers = described_layers(manifest, config, partial(_unpacked_bytes, files))
    return Image(name, layers, config.platform, entry.digest)


def _tagged(index: Index, tag: str, name: str, platform: Platform | None) -> Descriptor:
    """The entry with a tag, without one the only entry; of several with the same name the platform's."""
    entries = [entry for entry in index.entries if not tag or tag in _names(entry)]
    if len(entries) == 1:
        return entries[0]
    shown = ", ".join(sorted({found for entry in index.entries for found in _names(entry)})[:_MAX_SHOWN]) or "no names"
    if not entries:
        raise ImageUnreadable(f"{name} has no image called {tag}: it has {shown}")
    if len({tuple(_names(entry)) for entry in entries}) > 1:
        raise ImageUnreadable(f"{name} has {len(entries)} images; name one as oci:{name}:TAG ({shown})")
    return choose_image(Index(tuple(entries)), platform)


def _names(entry: Descriptor) -> Sequence[str]:
    return [text for key in (REF_NAME, _FULL_NAME) if (text := entry.annotations.get(key))]


def _document(files: Files, entry: Descriptor) -> Manifest | Index:
    return parse_document(_blob(files, entry), entry.media_type)


def _blob(files: Files, descriptor: Descriptor) -> bytes:
    """A document, checked against its digest."""
    data = whole(files, _path(descriptor.digest), max_bytes=MAX_DOCUMENT_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != descriptor.digest.hex:
        raise ImageUnreadable(f"{_path(descriptor.digest)} has the digest sha256:{digest}: the image is damaged")
    return data


def _check_size(files: Files, layer: Descriptor) -> None:
    size_bytes = files.size_of(_path(layer.digest))
    if size_bytes is None:
        raise ImageUnreadable(f"the layer {_path(layer.digest)} is missing: copy the image again")
    if size_bytes != layer.size_bytes:
        raise ImageUnreadable(f"the layer {_path(layer.digest)} has {size_bytes} bytes, not {layer.size_bytes}")


def _unpacked_bytes(files: Files, layer: Descriptor, compression: Compression) -> int | None:
    if compression is not Compression.GZIP:
        return None
    trailer = files.read(_path(layer.digest), max(0, layer.size_bytes - 4), layer.size_bytes)
    return gzip_unpacked_bytes(trailer, layer.size_bytes)


def _path(digest: Sha256) -> str:
    return f"blobs/sha256/{digest.hex}"
