"""Stand-ins for programs: shell scripts in a folder of the test."""

from pathlib import Path


def program(folder: Path, name: str, script: str) -> Path:
    """Put one there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
