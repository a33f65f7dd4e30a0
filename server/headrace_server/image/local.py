"""Images on this machine: which form a directory or an archive has.

An archive may be both a layout and what `docker save` writes, as newer versions of Docker make it; the layout counts
then, since it has digests.
"""

from contextlib import closing

from headrace_server.image.description import Image, Platform
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.files import DirectoryFiles, Files
from headrace_server.image.layout import INDEX, read_layout
from headrace_server.image.names import LocalImage
from headrace_server.image.saved import SAVED, read_saved
from headrace_server.image.tar_files import TarFiles

_MODEL_SUFFIXES = (".safetensors", ".gguf")


def read_local(image: LocalImage, platform: Platform | None) -> Image:
    """Describe an image for the platform, or this machine's. Raises ImageUnreadable."""
    name = str(image.path)
    try:
        if image.path.is_dir():
            return _described(DirectoryFiles(image.path), name, image.tag, platform)
        if name.endswith(_MODEL_SUFFIXES):
            raise ImageUnreadable(f"{name} is a model's weights, not a container image")
        with closing(TarFiles(image.path)) as files:
            return _described(files, name, image.tag, platform)
    except OSError as error:
        raise ImageUnreadable(f"{name} cannot be read: {error.strerror or error}") from error


def _described(files: Files, name: str, tag: str, platform: Platform | None) -> Image:
    if files.size_of(INDEX) is not None:
        return read_layout(files, name, tag, platform)
    if files.size_of(SAVED) is not None:
        return read_saved(files, name, tag, platform)
    if files.size_of("config.json") is not None:
        raise ImageUnreadable(f"{name} is a model, not a container image: headrace index show {name}")
    raise ImageUnreadable(f"{name} is no image: it has neither {INDEX} (OCI layout) nor {SAVED} (docker save)")
