"""What tensors may be: their data types, their shapes, how many bytes those take, what they may be called. Pure.

The types are those of safetensors 0.8 (`Dtype` in its tensor.rs); another one is refused by its name, since without its
size nothing else can be checked. Every refusal is a ValueError with the reason; who calls says in which file.
"""

from collections.abc import Mapping, Sequence

from headrace_models.strict_json import is_plain

MAX_TENSORS = 500_000
MAX_NAME_CHARS = 1000
MAX_DIMENSIONS = 32
# Times 64 bits this still fits 64 bits with a sign, so no reader of any language overflows.
MAX_ELEMENTS = 1 << 56

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def check_name(name: str) -> None:
    """Raise ValueError for a tensor name that is empty, too long or not printable."""
    if not is_plain(name, max_chars=MAX_NAME_CHARS):
        raise ValueError(f"a tensor has a name that is refused: {name[:100]!a}")


def size_of(dtype: str, shape: Sequence[object]) -> int:
    """The bytes that a tensor takes; raises ValueError where there is no such tensor."""
    if dtype not in DTYPE_BITS:
        raise ValueError(f"the data type {dtype[:30]!a} is unknown")
    bits = _num_elements(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise ValueError(f"the shape is not a whole number of bytes in {dtype}")
    return bits // 8


def _num_elements(shape: Sequence[object]) -> int:
    """Lengths of zero count as one until the end: a reader that multiplies from the left must not overflow either."""
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"the shape has more than {MAX_DIMENSIONS} dimensions")
    product, is_empty = 1, False
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError("the shape is not made of lengths")
        product *= max(1, length)
        is_empty = is_empty or length == 0
        if product > MAX_ELEMENTS:
            raise ValueError("the shape is impossibly large")
    return 0 if is_empty else product
