"""The room that a fetch under way will still take, so that two fetches do not both count on the same free bytes.

`state/reserved` holds, as a little-endian u64, how large the model's directory will be. It is read only while somebody
holds `fetch.lock`, so a dead fetch reserves nothing, and what has been written already is not counted twice.
"""

import struct

from headrace_models.store.files import read_part, write_part
from headrace_models.store.locks import Hold, is_held
from headrace_models.store.model_directory import FETCH_LOCK, ModelDirectory
from headrace_models.store.space import allocated_bytes

_SIZE = struct.Struct("<Q")
NOTHING = _SIZE.pack(0)


def reserve(model: ModelDirectory, needed_bytes: int) -> None:
    """Reserve `needed_bytes` beyond what is allocated now. Raises OSError."""
    write_part(model.reserved, _SIZE.pack(allocated_bytes(model.path) + max(0, needed_bytes)), 0)


def outstanding_bytes(model: ModelDirectory) -> int:
    """What a fetch under way will still take. Raises OSError."""
    if not is_held(model.path / FETCH_LOCK, Hold.EXCLUSIVE):
        return 0
    data = read_part(model.reserved, 0, _SIZE.size)
    reserved = _SIZE.unpack(data)[0] if len(data) == _SIZE.size else 0
    return max(0, reserved - allocated_bytes(model.path))
