"""Writes what an image is made of, as CycloneDX 1.6 in JSON: `sbom.py FILE`.

Runs inside the build, in the image's own interpreter, so that it lists what is there and not what was asked for: the
Python packages of its environment and, where there is dpkg, Debian's. Standard library only.
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import quote

Component = dict[str, object]

APPLICATION = "headrace"
_FORMAT = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Status}\\n"


def bill(python: list[Component], system: list[Component]) -> dict[str, object]:
    """The document. The application itself is what it is about, not one of its parts."""
    application = next(part for part in python if part["name"] == APPLICATION)
    parts = [part for part in (*python, *system) if part is not application]
    parts.sort(key=lambda part: str(part["bom-ref"]))
    content = json.dumps(parts, sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {"component": {**application, "type": "application"}},
        "components": parts,
    }


def python_components(found: Iterator[Distribution]) -> list[Component]:
    """One component for each installed distribution."""
    parts = {}
    for distribution in found:
        name, version = distribution.metadata["Name"].lower().replace("_", "-"), distribution.version
        parts[name] = _component(f"pkg:pypi/{quote(name)}@{quote(version)}", name, version) | _licence(distribution)
    return list(parts.values())


def debian_components(listing: str) -> list[Component]:
    """One component for each line `package, version, architecture, status` of dpkg-query."""
    parts = []
    for line in listing.splitlines():
        name, version, architecture, status = line.split("\t")
        if status == "installed":
            purl = f"pkg:deb/{_distributor()}/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
            parts.append(_component(purl, name, version))
    return parts


def _component(purl: str, name: str, version: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _licence(distribution: Distribution) -> Component:
    metadata = distribution.metadata
    if "License-Expression" not in metadata:
        return {}
    return {"licenses": [{"expression": metadata["License-Expression"]}]}


def _distributor() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "debian")


def _dpkg_listing() -> str:
    try:
        return subprocess.run(["dpkg-query", "-W", "-f", _FORMAT], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return ""


def main() -> None:
    """Write the file."""
    document = bill(python_components(iter(distributions())), debian_components(_dpkg_listing()))
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
