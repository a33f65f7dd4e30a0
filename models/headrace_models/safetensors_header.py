"""The header of a safetensors file: 8 bytes of length, then a JSON object naming every tensor and its byte range.

Format: https://github.com/huggingface/safetensors#format. The file is hostile until its header is parsed: lengths are
bounded before anything is allocated, and what is returned is whole: each type known, each shape as large as its bytes,
the tensors one behind the other from the first byte of data to the last. What is accepted here, safetensors' own
reader accepts as well, and sees alike. Tensor data is never read here.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace_models import strict_json
from headrace_models.errors import UnsafeModel
from headrace_models.tensor_types import MAX_TENSORS, check_name, size_of

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000

_METADATA = "__metadata__"


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
        prefix = file.read(LENGTH_BYTES)
        prefix += file.read(data_begin(path.name, prefix, size_bytes) - LENGTH_BYTES)
    return parse_header(path.name, prefix, size_bytes)


def data_begin(name: str, prefix: bytes, size_bytes: int) -> int:
    """Where the data of the file `name` begins, and so how many bytes of it `parse_header` needs.

    `prefix` is its beginning, LENGTH_BYTES at least, `size_bytes` its size. Raises UnsafeModel when no safetensors
    file begins like that.
    """
    if len(prefix) < LENGTH_BYTES:
        raise UnsafeModel(f"{name} is no safetensors file: it has {size_bytes} bytes")
    (header_bytes,) = struct.unpack_from("<Q", prefix)
    if header_bytes > MAX_HEADER_BYTES:
        raise UnsafeModel(f"{name} is no safetensors file: its header would have {header_bytes} bytes")
    if LENGTH_BYTES + header_bytes > size_bytes:
        raise UnsafeModel(f"{name} is cut off: its header has {header_bytes} bytes, the file {size_bytes}")
    return LENGTH_BYTES + int(header_bytes)


def parse_header(name: str, prefix: bytes, size_bytes: int) -> Mapping[str, TensorEntry]:
    """The tensors of the file `name` of `size_bytes`, by name, in the order of their bytes.

    `prefix` is the beginning of the file, at least up to `data_begin`. Raises UnsafeModel.
    """
    begin = data_begin(name, prefix, size_bytes)
    if len(prefix) < begin:
        raise UnsafeModel(f"{name} is cut off: {len(prefix)} bytes of its header are there, it has {begin}")
    header = prefix[LENGTH_BYTES:begin]
    try:
        content = strict_json.parse(header)
    except ValueError as error:
        raise UnsafeModel(f"{name} is no safetensors file: its header is not JSON as it must be ({error})") from error
    if not isinstance(content, dict) or not header.startswith(b"{"):
        raise UnsafeModel(f"{name} is no safetensors file: its header is not a JSON object")
    try:
        _check_metadata(content.pop(_METADATA, {}))
        return _tensors(content, size_bytes - begin)
    except ValueError as error:
        raise UnsafeModel(f"{name}: {error}") from error


def _check_metadata(value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("the header's metadata is not a map from texts to texts")
    for text in (*value, *value.values()):
        text.encode()  # half of a surrogate pair is no text; UnicodeEncodeError is a ValueError


def _tensors(content: Mapping[str, object], data_bytes: int) -> Mapping[str, TensorEntry]:
    if len(content) > MAX_TENSORS:
        raise ValueError(f"the header names more than {MAX_TENSORS} tensors")
    tensors = [(name, _entry(name, value, data_bytes)) for name, value in content.items()]
    tensors.sort(key=lambda tensor: (tensor[1].begin, tensor[1].end, tensor[0]))
    position = 0
    for name, tensor in tensors:
        if tensor.begin != position:
            kind = "overlap" if tensor.begin < position else "leave a hole"
            raise ValueError(f"the bytes of {name[:100]!r} begin at {tensor.begin}, not at {position}: tensors {kind}")
        position = tensor.end
    if position != data_bytes:
        raise ValueError(f"the tensors end at byte {position}, the file at {data_bytes}")
    return dict(tensors)


def _entry(name: str, value: object, data_bytes: int) -> TensorEntry:
    check_name(name)
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest} if not rest:
            pass
        case _:
            raise ValueError(f"the header's entry for {name[:100]!r} is malformed")
    if type(begin) is not int or type(end) is not int:
        raise ValueError(f"the header's entry for {name[:100]!r} is malformed")
    if not 0 <= begin <= end <= data_bytes:
        raise ValueError(f"{name[:100]!r} has bytes {begin} to {end}, the file has {data_bytes} (cut off?)")
    try:
        size_bytes = size_of(dtype, shape)
    except ValueError as error:
        raise ValueError(f"{name[:100]!r}: {error}") from error
    if size_bytes != end - begin:
        raise ValueError(f"the shape of {name[:100]!r} does not fit its {end - begin} bytes")
    return TensorEntry(dtype, tuple(shape), begin, end)
