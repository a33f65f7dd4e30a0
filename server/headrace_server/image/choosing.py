"""Which image of an index is meant: the one for the platform. Pure."""

import platform as this_machine
from collections.abc import Sequence

from headrace_server.errors import UsageError
from headrace_server.image.description import Platform
from headrace_server.image.documents import Descriptor, Index
from headrace_server.image.errors import ImageUnreadable

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
# https://docs.docker.com/build/metadata/attestations/attestation-storage/
_ATTESTATION = "vnd.docker.reference.type"
_MAX_SHOWN = 12


def this_platform() -> Platform:
    """The one whose images this machine runs; on a Mac too, containers are Linux's."""
    machine = this_machine.machine().lower()
    return Platform("linux", _ARCHITECTURES.get(machine, machine))


def parse_platform(text: str) -> Platform:
    """Read `os/architecture[/variant]`; raises UsageError."""
    parts = text.split("/")
    if len(parts) not in {2, 3} or not all(part.isascii() and part.isprintable() and part for part in parts):
        raise UsageError(f"not a platform: {ascii(text[:50])} (wanted: linux/amd64, linux/arm64, …)")
    return Platform(*parts)


def choose_image(index: Index, wanted: Platform | None) -> Descriptor:
    """The entry for `wanted`, or for this machine; an only entry without a platform is taken as it is.

    Raises ImageUnreadable, naming the platforms that there are.
    """
    images = [entry for entry in index.entries if _is_image(entry)]
    if len(images) == 1 and (images[0].platform is None or wanted is None):
        return images[0]
    platform = wanted or this_platform()
    for entry in images:
        if _fits(entry.platform, platform):
            return entry
    raise ImageUnreadable(f"there is no image for {platform} (--platform); there are: {_listed(images)}")


def check_platform(found: Platform | None, wanted: Platform | None) -> None:
    """Of an image without an index. Raises ImageUnreadable where it is for another platform than the one asked for."""
    if wanted is not None and found is not None and not _fits(found, wanted):
        raise ImageUnreadable(f"the image is for {found} and not for {wanted} (--platform)")


def _is_image(entry: Descriptor) -> bool:
    return not entry.artifact_type and _ATTESTATION not in entry.annotations


def _fits(found: Platform | None, wanted: Platform) -> bool:
    if found is None or (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return False
    return not wanted.variant or found.variant == wanted.variant


def _listed(images: Sequence[Descriptor]) -> str:
    platforms = [str(entry.platform or entry.digest) for entry in images]
    return ", ".join(platforms[:_MAX_SHOWN]) + (", …" if len(platforms) > _MAX_SHOWN else "") or "none"
