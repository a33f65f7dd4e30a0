"""Where an image is, as a user writes it.

    oci:DIR[:TAG]  oci-archive:FILE[:TAG]  docker-archive:FILE[:TAG]     as skopeo and buildah write them
    DIR, FILE                                                            an OCI layout; an archive of either form
    registry/repository[:tag][@sha256:…], docker://…                     a registry

A path is what begins with `/`, `./`, `../` or `~`, ends in `.tar`, or exists. Nothing is opened here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from headrace_models.errors import InvalidReference
from headrace_models.locations import OciLocation
from headrace_server.errors import UsageError

_TRANSPORT = re.compile(r"(oci|oci-archive|docker-archive):(?!//)(?P<rest>.*)", re.DOTALL)
_PATH = re.compile(r"(?:/|\./|\.\./|~|\.$|\.\.$)|.*\.(?:tar|tgz|tar\.\w+)$", re.DOTALL)
_ENGINES = re.compile(r"(docker-daemon|containers-storage|podman|dir|hf|s3|https?|file|embedded):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """A directory or archive; `tag` chooses among several images in it."""

    path: Path
    tag: str = ""


def parse_image_name(text: str) -> LocalImage | OciLocation:
    """Read IMAGE; raises UsageError, which says how it should be written."""
    if not text or not text.isprintable():
        raise UsageError("no image: give an OCI layout, an archive, or registry/repository:tag")
    if match := _TRANSPORT.fullmatch(text):
        return _tagged(match["rest"])
    if _PATH.match(text) or Path(text).exists():
        return LocalImage(Path(text).expanduser())
    remote = text.removeprefix("docker://").removeprefix("oci://")
    if match := _ENGINES.match(remote):
        raise UsageError(
            f"images are not read from {match[1]}: docker save -o image.tar NAME, then headrace image lint image.tar"
        )
    try:
        return OciLocation.parse(remote)
    except InvalidReference as error:
        raise UsageError(
            f"{error}; with its registry (docker.io/library/…), or a path (./…), or first docker save -o image.tar NAME"
        ) from error


def _tagged(text: str) -> LocalImage:
    """`PATH` or `PATH:TAG`. Both may hold colons: the path is the shortest part that exists, else what is before the
    first one."""
    if not text or text.startswith(":"):
        raise UsageError(
            "no path after the transport: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG]"
        )
    ends = [match.start() for match in re.finditer(":", text)] + [len(text)]
    end = next((end for end in ends if Path(text[:end]).expanduser().exists()), ends[0])
    return LocalImage(Path(text[:end]).expanduser(), text[end + 1 :])
