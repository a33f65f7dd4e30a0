"""The header of a safetensors file: 8 bytes of length, then a JSON object naming every tensor and its byte range.

Format: https://github.com/huggingface/safetensors#format. The file is hostile until its header is parsed: lengths are
bounded before anything is allocated, byte ranges must lie inside the file, and shapes must be possible for the bytes
they claim. Tensor data is never read here.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace_models.errors import UnsafeModel

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
# The smallest element there is takes one bit.
MAX_ELEMENTS_PER_BYTE = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `begin` and `end` count bytes from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        """The product of the shape, 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """What the tensor takes in the file."""
        return self.end - self.begin


def read_header(path: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a safetensors file by name; raises UnsafeModel when it is not one, OSError when unreadable."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        length_field = file.read(LENGTH_BYTES)
        if len(length_field) < LENGTH_BYTES:
            raise UnsafeModel(f"{path.name} is no safetensors file: it has {size_bytes} bytes")
        (header_bytes,) = struct.unpack("<Q", length_field)
        if header_bytes > MAX_HEADER_BYTES:
            raise UnsafeModel(f"{path.name} is no safetensors file: its header would have {header_bytes} bytes")
        data_bytes = size_bytes - LENGTH_BYTES - header_bytes
        if data_bytes < 0:
            raise UnsafeModel(f"{path.name} is cut off: its header has {header_bytes} bytes, the file {size_bytes}")
        header = file.read(header_bytes)
    return _tensors(path.name, header, data_bytes)


def _tensors(name: str, header: bytes, data_bytes: int) -> Mapping[str, TensorEntry]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise UnsafeModel(f"{name} is no safetensors file: its header is not JSON") from error
    if not isinstance(content, dict):
        raise UnsafeModel(f"{name} is no safetensors file: its header is not a JSON object")
    content.pop("__metadata__", None)
    return {tensor: _entry(name, tensor, value, data_bytes) for tensor, value in content.items()}


def _entry(name: str, tensor: str, value: object, data_bytes: int) -> TensorEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise UnsafeModel(f"{name}: the header's entry for {tensor[:100]!r} is malformed")
    if not 0 <= begin <= end <= data_bytes:
        raise UnsafeModel(f"{name}: {tensor[:100]!r} has bytes {begin} to {end}, the file has {data_bytes} (cut off?)")
    if not _is_possible(shape, end - begin):
        raise UnsafeModel(f"{name}: the shape of {tensor[:100]!r} does not fit its {end - begin} bytes")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _is_possible(shape: list[object], size_bytes: int) -> bool:
    if len(shape) > MAX_DIMENSIONS:
        return False
    num_elements = 1
    for length in shape:
        if type(length) is not int or length < 0:
            return False
        num_elements *= length
    return num_elements <= size_bytes * MAX_ELEMENTS_PER_BYTE
