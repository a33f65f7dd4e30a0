"""What kind of file system a directory is on, for messages; decides nothing."""

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def file_system_type(directory: Path, *, mounts: Path = _MOUNTS) -> str | None:
    """The type as the kernel names it (`ext4`, `nfs4`); None where it does not tell (proc(5), mountinfo)."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    resolved = directory.resolve()
    found = [(len(place.parts), kind) for place, kind in map(_parse, lines) if resolved.is_relative_to(place)]
    # Of two mounts on one place the later one hides the earlier.
    return max(reversed(found), key=lambda mount: mount[0], default=(0, None))[1]


def _parse(line: str) -> tuple[Path, str]:
    before, _, after = line.partition(" - ")
    place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4])
    return Path(place), after.split(" ")[0]
