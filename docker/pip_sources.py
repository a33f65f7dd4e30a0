"""Where pip finds packages on this machine, in a form that a build can be given: a file of settings without paths of
this machine, the certificates that it trusts, and a folder with the wheels of its find-links folders.

The first two reach the build as secrets, so that neither an address nor a password gets into a layer.
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_KEYS = ("index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout", "retries", "proxy")
_LISTED = re.compile(r"^(?P<section>[^.]*)\.(?P<key>[a-z-]+)=(?P<value>'.*'|\".*\")$")


@dataclass(frozen=True, slots=True)
class PipSources:
    """`conf`: the text of a pip.conf. `certificates`: a file, or None for the usual ones. `folders`: with wheels."""

    conf: str
    certificates: Path | None
    folders: tuple[Path, ...]


def configured_sources(python: str) -> PipSources:
    """What `python`'s pip is configured for, by files and variables. A Python without pip has no sources of its own."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    return read_sources(listed.stdout)


def read_sources(listed: str) -> PipSources:
    """Understand what `pip config list` prints: variables (`:env:`) win over files."""
    values = _values(listed)
    lines = [f"{key} = {' '.join(kept)}" for key in _KEYS if (kept := _reachable(values.get(key, "")))]
    certificates = Path(values["cert"]) if "cert" in values else None
    folders = tuple(
        Path(urlsplit(place).path) for place in values.get("find-links", "").split() if not _is_remote(place)
    )
    return PipSources(
        "\n".join(["[global]", *lines, ""]),
        certificates if certificates is not None and certificates.is_file() else None,
        tuple(folder for folder in folders if folder.is_dir()),
    )


def gather_wheels(folders: tuple[Path, ...], target: Path, wanted: str) -> None:
    """Fill `target` with the wheels whose project is named at the start of a line of the lock `wanted`."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    names = {_normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", wanted, flags=re.MULTILINE)}
    for wheel in (path for folder in folders for path in folder.glob("*.whl")):
        if _normal(wheel.name.partition("-")[0]) in names:
            _link_or_copy(wheel, target / wheel.name)


def _values(listed: str) -> Mapping[str, str]:
    found = [match for line in listed.splitlines() if (match := _LISTED.match(line))]
    found.sort(key=lambda match: match["section"] == ":env:")
    return {match["key"]: str(ast.literal_eval(match["value"])) for match in found}


def _reachable(value: str) -> list[str]:
    """The words of a setting, without addresses of this machine's files."""
    return [word for word in value.split() if not word.startswith(("file:", "/"))]


def _is_remote(place: str) -> bool:
    return urlsplit(place).scheme not in ("", "file")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_or_copy(source: Path, target: Path) -> None:
    """A link where both lie on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
