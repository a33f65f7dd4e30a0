"""Images in archives of `docker save`, whose layers are files under any name, uncompressed.

What a pull would move cannot be told from them: compressed, they are smaller. https://github.com/moby/docker-image-spec
"""

import hashlib
from collections.abc import Sequence

from headrace_models.digest import Sha256
from headrace_server.image.choosing import check_platform
from headrace_server.image.description import Compression, Image, Platform
from headrace_server.image.documents import (
    MAX_DOCUMENT_BYTES,
    Config,
    Descriptor,
    Manifest,
    SavedImage,
    parse_config,
    parse_saved,
)
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.files import Files, whole
from headrace_server.image.layers import described_layers, sniffed

SAVED = "manifest.json"

_LAYER_TYPES = {
    Compression.NONE: "application/vnd.docker.image.rootfs.diff.tar",
    Compression.GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    Compression.ZSTD: "application/vnd.docker.image.rootfs.diff.tar.zstd",
}


def read_saved(files: Files, name: str, tag: str, platform: Platform | None) -> Image:
    """Describe the image with this tag, or the only one. Raises ImageUnreadable."""
    saved = _saved_image(parse_saved(whole(files, SAVED, max_bytes=MAX_DOCUMENT_BYTES)), tag, name)
    data = whole(files, saved.config, max_bytes=MAX_DOCUMENT_BYTES)
    described = _descriptor_of(data)
    stated = saved.config.rpartition("/")[2].removesuffix(".json")
    if len(stated) == len(described.digest.hex) and stated != described.digest.hex:
        raise ImageUnreadable(f"{saved.config} has the digest {described.digest}: the image is damaged")
    config = parse_config(data)
    check_platform(config.platform, platform)
    manifest = Manifest(described, _layers(files, saved, config), {})
    layers = described_layers(manifest, config, lambda _layer, _compression: None)
    return Image(name, layers, config.platform, is_as_pulled=False)


def _saved_image(images: Sequence[SavedImage], tag: str, name: str) -> SavedImage:
    found = [image for image in images if not tag or tag in image.tags]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(tag for image in images for tag in image.tags[:1]) or "no names"
    if found:
        raise ImageUnreadable(f"{name} has {len(found)} images; name one as docker-archive:{name}:TAG ({shown})")
    raise ImageUnreadable(f"{name} has no image called {tag}: it has {shown}" if tag else f"{name} has no image")


def _descriptor_of(data: bytes) -> Descriptor:
    digest = Sha256(hashlib.sha256(data).hexdigest())
    return Descriptor("application/vnd.docker.container.image.v1+json", digest, len(data), {})


def _layers(files: Files, saved: SavedImage, config: Config) -> tuple[Descriptor, ...]:
    """An uncompressed layer's digest is what the configuration calls its diff_id."""
    if len(saved.layers) != len(config.diff_ids):
        raise ImageUnreadable(f"{SAVED} has {len(saved.layers)} layers and the configuration {len(config.diff_ids)}")
    pairs = zip(saved.layers, config.diff_ids, strict=True)
    return tuple(_layer(files, path, diff_id) for path, diff_id in pairs)


def _layer(files: Files, path: str, diff_id: Sha256) -> Descriptor:
    size_bytes = files.size_of(path)
    if size_bytes is None:
        raise ImageUnreadable(f"the layer {path} is missing: save the image again")
    return Descriptor(_LAYER_TYPES[sniffed(files.read(path, 0, 4))], diff_id, size_bytes, {})
