"""Headers of safetensors files: what is accepted is what safetensors accepts, and every refusal has its reason."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace_models.errors import UnsafeModel
from headrace_models.safetensors_header import data_begin, parse_header, read_header
from headrace_models.tensor_types import DTYPE_BITS
from tests.fakes.checkpoints import FakeTensor, llama_tensors, raw_safetensors, safetensors_bytes

safetensors = pytest.importorskip("safetensors")

U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def parse(file: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What our reader makes of a file: data type, shape and bytes of each tensor."""
    begin = data_begin("m.safetensors", file, len(file))
    tensors = parse_header("m.safetensors", file, len(file))
    data = file[begin:]
    return {name: (tensor.dtype, tensor.shape, data[tensor.begin : tensor.end]) for name, tensor in tensors.items()}


def parse_theirs(file: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What safetensors makes of it; raises SafetensorError."""
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(file)}


tensors = st.builds(
    FakeTensor,
    st.text("ab.0_\u00e9", min_size=1, max_size=8),
    st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=4).map(tuple),
    st.sampled_from(["BF16", "F32", "U8", "I64", "F8_E4M3", "C64", "BOOL"]),
)
distinct_tensors = st.lists(tensors, max_size=5, unique_by=lambda tensor: tensor.name)


def document_of(members: list[FakeTensor]) -> tuple[dict[str, object], bytes]:
    """A header, as safetensors would order it or not, and its data."""
    document: dict[str, object] = {}
    data = b""
    for tensor in members:
        document[tensor.name] = entry(tensor.dtype, tensor.shape, (len(data), len(data) + tensor.size_bytes))
        data += tensor.data
    return document, data


hostile_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["U8", "F4", "bf16", "C128", "__metadata__", "\ud800"]),
    st.lists(st.integers(-1, 4), max_size=3),
    st.lists(st.sampled_from([0, 1, 2**32, 2**63]), max_size=4),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """Files that are nearly right: one value, one key, a piece of text or one byte differs from a right one."""
    document, data = document_of(draw(distinct_tensors))
    kind = draw(st.sampled_from(["value", "field", "text", "length", "tail"]))
    name = draw(st.sampled_from([*document, "extra", "__metadata__"]))
    fields = document.get(name)
    if kind == "value":
        document[name] = draw(hostile_values)
    if kind == "field" and isinstance(fields, dict):
        fields[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(hostile_values)
    text = json.dumps(document).encode()
    if kind == "text":
        text = text.replace(*draw(st.sampled_from(MUTATIONS)), draw(st.integers(1, 3)))
    length = len(text) + (draw(st.sampled_from([-1, 1])) if kind == "length" else 0)
    return struct.pack("<Q", length) + text + data + (b"\0" if kind == "tail" else b"")


MUTATIONS = [
    (b"", b""),
    (b"[0, ", b"[-0, "),
    (b"0", b"00"),
    (b"2", b"2.0"),
    (b"2", b"2e0"),
    (b"}", b"},"),
    (b"}", b"} "),
    (b" ", b"\x0b"),
    (b" ", b"\xc2\xa0"),
    (b'"dtype"', b'"dtype": "U8", "dtype"'),
    (b'"', b"'"),
    (b"{", b"\xef\xbb\xbf{"),
    (b"{", b'{"a": {}, '),
    (b"[", b"[["),
    (b"1", b"NaN"),
    (b"1", b"true"),
    (b'"U8"', b'"\\u0055\\u0038"'),
    (b'"', b'"\\ud800'),
    (b"e", b"\\u0065"),
    (b"a", b"\xff"),
]


@given(file=mutated_files())
@example(file=raw_safetensors({"a": entry(shape=[2**63, 2**63, 0], offsets=[0, 0])}))
@example(file=raw_safetensors(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}', b"12"))
@example(file=raw_safetensors(b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"12"))
@example(file=raw_safetensors(b'{"__metadata__":{"a":"\\udc00"}}'))
@example(file=raw_safetensors('{"a":1}'.encode("utf-16")))
def test_what_is_accepted_safetensors_accepts_and_sees_alike(file: bytes) -> None:
    try:
        ours = parse(file)
    except UnsafeModel:
        return
    assert ours == parse_theirs(file)


@given(members=distinct_tensors)
def test_files_that_are_right_are_accepted_and_seen_alike(members: list[FakeTensor]) -> None:
    file = raw_safetensors(*document_of(members))
    assert parse(file) == parse_theirs(file)


@given(data=st.binary(max_size=60), size=st.integers(0, 80))
def test_any_bytes_are_refused_or_accepted_and_never_crash(data: bytes, size: int) -> None:
    for file in (data, struct.pack("<Q", size) + data):
        try:
            ours = parse(file)
        except UnsafeModel:
            continue
        assert ours == parse_theirs(file)


def test_every_type_of_safetensors_is_known_with_its_size() -> None:
    for dtype, bits in DTYPE_BITS.items():
        parse(file := raw_safetensors({"a": entry(dtype, (8,), (0, bits))}, bytes(bits)))
        assert parse_theirs(file)["a"][0] == dtype
    with pytest.raises(safetensors.SafetensorError) as refusal:
        parse_theirs(raw_safetensors({"a": entry("?")}, b"12"))
    named = set(str(refusal.value).split("expected one of ")[1].split(" at line")[0].replace("`", "").split(", "))
    assert named == set(DTYPE_BITS)


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    document = {"b": entry(offsets=(4, 6)), "a": entry(offsets=(2, 4)), "c": entry()}
    assert list(parse(raw_safetensors(document, bytes(6)))) == ["c", "a", "b"]


def test_tensors_without_bytes_may_lie_anywhere_between_others() -> None:
    document = {"a": entry(), "z": entry(shape=(0, 5), offsets=(2, 2)), "b": entry(offsets=(2, 4))}
    document["s"] = entry(shape=(0,), offsets=(4, 4))
    assert list(parse(raw_safetensors(document, bytes(4)))) == ["a", "z", "b", "s"]


@pytest.mark.parametrize("length", range(9))
@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_types_smaller_than_a_byte_must_fill_whole_bytes(dtype: str, length: int) -> None:
    data = bytes(length * DTYPE_BITS[dtype] // 8)
    file = raw_safetensors({"a": entry(dtype, (length,), (0, len(data)))}, data)
    if length * DTYPE_BITS[dtype] % 8 == 0:
        assert parse(file) == parse_theirs(file)
        return
    with pytest.raises(safetensors.SafetensorError):
        parse_theirs(file)
    with pytest.raises(UnsafeModel, match="whole number of bytes"):
        parse(file)


def test_a_scalar_has_one_element() -> None:
    assert parse(raw_safetensors({"a": entry(shape=(), offsets=(0, 1))}, b"1"))["a"][1] == ()


# What we refuse although safetensors reads it: each could be read in two ways, or is written by nobody.
OURS_ONLY = {
    "a name twice": (b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},' * 2)[:-1].replace(b"},{", b"},") + b"}",
    "an unknown field": {"a": entry(strides=[1])},
    "null for metadata": {"a": U8, "__metadata__": None},
    "spaces before the object": b' {"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "an entry that is an array": {"a": ["U8", [2], [0, 2]]},
    "an empty name": {"": U8},
    "a control character": {"a\x00b": U8},
    "a line separator": {"a\u2028b": U8},
    "a name of 1001 characters": {"n" * 1001: U8},
    "33 dimensions": {"a": entry(shape=[1] * 32 + [2])},
    "2**57 elements beside a zero": {"a": U8, "z": entry(shape=[0, 2**57], offsets=(2, 2))},
}


@pytest.mark.parametrize("name", OURS_ONLY)
def test_what_only_we_refuse_is_on_this_list(name: str) -> None:
    file = raw_safetensors(OURS_ONLY[name], b"12")
    assert parse_theirs(file)
    with pytest.raises(UnsafeModel):
        parse(file)


@pytest.mark.parametrize(
    ("document", "data", "reason"),
    [
        ({"a": U8}, b"1", "cut off"),
        ({"a": U8}, b"123", "the tensors end at byte 2, the file at 3"),
        ({"a": U8, "b": entry(offsets=(1, 3))}, b"123", "overlap"),
        ({"a": U8, "b": entry(offsets=(3, 5))}, b"12345", "leave a hole"),
        ({"a": entry(offsets=(1, 3))}, b"123", "leave a hole"),
        ({"a": U8, "b": U8}, b"12", "overlap"),
        ({"a": entry(shape=[3])}, b"12", "does not fit its 2 bytes"),
        ({"a": entry("Q4_K")}, b"12", "'Q4_K' is unknown"),
        ({"a": entry("F4", [3])}, b"12", "not a whole number of bytes"),
        ({"a": entry(shape=[True, 2])}, b"12", "not made of lengths"),
        ({"a": entry(shape=[2.0])}, b"12", "not made of lengths"),
        ({"a": entry(shape=[2**40, 2**40])}, b"12", "impossibly large"),
        ({"a": entry(offsets=[False, 2])}, b"12", "malformed"),
        ({"a": entry(offsets=[0, 2, 2])}, b"12", "malformed"),
        ({"a": {"dtype": "U8", "shape": [2]}}, b"12", "malformed"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        ({"__metadata__": []}, b"", "metadata"),
        ([], b"", "not a JSON object"),
        (b'{"a":NaN}', b"", "NaN is not JSON"),
        (b"{" * 5000, b"", "not JSON|nested"),
        (b'{"a":' + b"[" * 90_000, b"", "nested too deeply"),
        (b"{" + b",".join(b'"%d":0' % number for number in range(500_001)) + b"}", b"", "more than 500000 tensors"),
        (b"[" * 2_000_001, b"", "too many values"),
        (b"," * 10_000_001, b"", "too many values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_lies_is_refused_with_its_reason(document: object, data: bytes, reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        parse(raw_safetensors(document, data))


def test_the_first_eight_bytes_say_how_many_are_needed() -> None:
    file = raw_safetensors({"a": U8}, b"12")
    assert data_begin("m", file[:8], len(file)) == len(file) - 2
    assert parse_header("m", file[:-2], len(file)) == parse_header("m", file, len(file))


@pytest.mark.parametrize("missing", [1, 20])
def test_a_header_that_is_not_all_there_is_refused(missing: int) -> None:
    file = raw_safetensors({"a": U8}, b"12")
    with pytest.raises(UnsafeModel, match="bytes of its header are there"):
        parse_header("m", file[: -2 - missing], len(file))


@pytest.mark.parametrize(
    ("prefix", "size", "reason"),
    [
        (b"1234567", 7, "it has 7 bytes"),
        (struct.pack("<Q", 100_000_001), 10**9, "its header would have"),
        (struct.pack("<Q", 2**64 - 1), 10**9, "its header would have"),
        (struct.pack("<Q", 93), 100, "cut off"),
    ],
)
def test_a_length_that_cannot_be_is_refused_before_anything_is_read(prefix: bytes, size: int, reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        data_begin("m", prefix, size)


def test_a_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    file = safetensors_bytes(llama_tensors(2, 16))
    (tmp_path / "model.safetensors").write_bytes(file)
    assert read_header(tmp_path / "model.safetensors") == parse_header("model.safetensors", file, len(file))


def test_the_checkpoints_of_the_tests_are_in_safetensors_own_order() -> None:
    file = safetensors_bytes(llama_tensors(11, 16))
    assert list(parse(file)) == sorted(parse(file), key=lambda name: ("norm" not in name, name))
    assert parse(file) == parse_theirs(file)
