"""Find an image by the text that names it, wherever it is."""

from collections.abc import Mapping

from headrace_server.image.description import Image, Platform
from headrace_server.image.local import read_local
from headrace_server.image.names import LocalImage, parse_image_name
from headrace_server.image.remote import read_remote, registry_options


def read_image(
    text: str, *, platform: Platform | None, environ: Mapping[str, str], insecure_hosts: frozenset[str]
) -> Image:
    """Describe the image for `platform`; None: this machine's. Blocks on disks and networks.

    `environ` says where Docker's credentials are; `insecure_hosts` may be spoken to over plain HTTP, loopback always.

    Raises:
        UsageError: the text names no image.
        ImageUnreadable: what is there is no image, or a damaged one.
        ModelError: the registry does not give it; see `Registry`.
    """
    name = parse_image_name(text)
    if isinstance(name, LocalImage):
        return read_local(name, platform)
    return read_remote(name, registry_options(environ, insecure_hosts), platform)
