"""Cuts a lock into the parts that become layers of the image: `lock_parts.py LOCK FOLDER`.

The largest packages stand alone, since layers are pulled side by side and one that has not changed is not pulled again.
Runs inside the build with the standard library only.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

PARTS: Mapping[str, re.Pattern[str]] = {
    "torch": re.compile("torch"),
    "vllm": re.compile("vllm(-cpu)?"),
    "cudnn": re.compile("nvidia-cudnn.*"),
    "cublas": re.compile("nvidia-cublas.*"),
    "nvidia": re.compile("nvidia-.*"),
}
REST = "rest"

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def lock_parts(lock: str) -> dict[str, str]:
    """Part → its requirements with their digests; together they are the lock. Parts for GPUs may be empty."""
    parts: dict[str, list[str]] = {part: [] for part in (*PARTS, REST)}
    part = REST
    for line in lock.splitlines(keepends=True):
        if found := _NAME.match(line):
            part = next((name for name, pattern in PARTS.items() if pattern.fullmatch(found[0])), REST)
        if not line.startswith("#"):
            parts[part].append(line)
    return {name: "".join(lines) for name, lines in parts.items()}


def main() -> None:
    """Write each part as NAME.txt."""
    lock, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, requirements in lock_parts(lock.read_text()).items():
        (folder / f"{name}.txt").write_text(requirements)


if __name__ == "__main__":
    main()
