"""How far a model's bytes are checked: reported wherever a model is named, never assumed."""

from enum import StrEnum


class Trust(StrEnum):
    """CHUNK: every chunk against a digest known before its bytes. FILE: every file against a digest known before its
    bytes, so nothing is ready until the last byte is there. NONE: taken as found; later reads are compared with the
    first one."""

    CHUNK = "chunk"
    FILE = "file"
    NONE = "none"

    def reaches(self, required: "Trust") -> bool:
        """Whether this is at least `required`."""
        order = (Trust.NONE, Trust.FILE, Trust.CHUNK)
        return order.index(self) >= order.index(required)
