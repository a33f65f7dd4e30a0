"""The seek index: what is written is read back as it was, and one that contradicts itself is refused."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.chunk_layout import UNIT_BYTES
from headrace_models.digest import Sha256
from headrace_models.errors import UnsafeModel
from headrace_models.layer_plan import group_order
from headrace_models.seek_index import IndexedFile, IndexedTensor, SeekIndex
from headrace_models.seek_index_checks import check, execution_key
from headrace_models.sources.base import FileRange, Literal, Proof
from headrace_models.trust import Trust

HEADER_BYTES = 64
GROUPS = ("embedding", "other", "layer.0", "layer.1", "layer.10", "head")


def index_of(shards: list[list[tuple[int, str]]], proofs: tuple[Proof, ...] = ()) -> SeekIndex:
    """An index of U8 tensors, given by size and group, shard by shard."""
    groups = group_order(group for shard in shards for _, group in shard)
    files, tensors = [], []
    for number, shard in enumerate(shards):
        begin = HEADER_BYTES
        for position, (size, group) in enumerate(shard):
            name = f"{group}.{number}.{position}"
            tensors.append(IndexedTensor(name, number, begin, begin + size, "U8", (size,), groups.index(group)))
            begin += size
        files.append(IndexedFile(f"model-{number}.safetensors", begin, HEADER_BYTES, None, None))
    tensors.sort(key=execution_key)
    return SeekIndex("hf://a/b", "r1", "LlamaForCausalLM", groups, tuple(files), tuple(tensors), proofs)


def with_digests(index: SeekIndex) -> SeekIndex:
    """`index` with some digest for each chunk."""
    files = (
        replace(file, chunk_digests=tuple(Sha256(f"{number:064x}") for number in range(len(layout))))
        for file, layout in zip(index.files, index.layouts, strict=True)
    )
    return replace(index, files=tuple(files))


def digest(digit: str = "a") -> Sha256:
    return Sha256(digit * 64)


def small_index() -> SeekIndex:
    """Two shards, four groups, proofs of both, and digests of chunks of the first."""
    index = index_of(
        [[(3, "embedding"), (5, "layer.0"), (0, "layer.0")], [(7, "layer.1"), (2, "head")]],
        (
            Proof(digest(), (Literal(b"\0tar"), FileRange("model-0.safetensors", 0, HEADER_BYTES + 8))),
            Proof(digest("b"), (FileRange("model-1.safetensors", 0, HEADER_BYTES + 9),)),
        ),
    )
    first, second = with_digests(index).files
    return replace(index, files=(replace(first, validator='"etag"'), replace(second, digest=digest("c"))))


sizes = st.one_of(st.integers(0, 5), st.sampled_from([70_000, UNIT_BYTES, 2 * UNIT_BYTES + 1]))
shards = st.lists(st.lists(st.tuples(sizes, st.sampled_from(GROUPS)), max_size=8), min_size=1, max_size=3)
texts = st.text("aé/:@ ", min_size=1, max_size=9)


@st.composite
def indexes(draw: st.DrawFn) -> SeekIndex:
    """Indexes with nothing wrong."""
    index = index_of(draw(shards))
    if draw(st.booleans()):
        index = with_digests(index)
    proofs = tuple(
        Proof(digest(draw(st.sampled_from("0af"))), (Literal(draw(st.binary())), FileRange(file.path, 0, 10)))
        for file in index.files
        if draw(st.booleans())
    )
    files = tuple(replace(file, validator=draw(st.none() | texts)) for file in index.files)
    architecture = draw(st.none() | texts)
    return replace(index, reference=draw(texts), architecture=architecture, proofs=proofs, files=files)


@given(index=indexes())
def test_an_index_is_read_back_as_it_was_written(index: SeekIndex) -> None:
    written = index.to_json()
    assert SeekIndex.from_json(written) == index
    assert SeekIndex.from_json(written).to_json() == written


@given(index=indexes())
def test_every_chunk_comes_once_headers_first_and_then_in_execution_order(index: SeekIndex) -> None:
    order = list(index.chunks_in_order())
    assert sorted(order) == [(n, chunk) for n, layout in enumerate(index.layouts) for chunk in range(len(layout))]
    groups = [index.layouts[file].group_of(chunk) for file, chunk in order]
    ranks = [-1 if group is None else group for group in groups]
    assert ranks == sorted(ranks)


def test_the_written_form_does_not_depend_on_how_the_index_was_made() -> None:
    index = small_index()
    document = json.loads(index.to_json())
    shuffled = json.dumps(dict(reversed(document.items())), indent=3, ensure_ascii=True).encode()
    assert SeekIndex.from_json(shuffled).to_json() == index.to_json()


def test_the_written_form_stays_as_it_is() -> None:
    index = replace(index_of([[(1, "layer.0")]]), architecture=None)
    assert index.to_json() == (
        b'{"architecture":null,"files":[{"chunk_digests":null,"data_begin":64,"digest":null,'
        b'"path":"model-0.safetensors","size_bytes":65,"validator":null}],"format":1,"groups":["layer.0"],'
        b'"layout":"tensor-1MiB/1","proofs":[],"reference":"hf://a/b","revision":"r1",'
        b'"tensors":[["layer.0.0.0",0,64,65,"U8",[1],0]]}'
    )


def edit(*path: str | int, to: object) -> Callable[[Any], None]:
    """Puts `to` where `path` leads in a document."""

    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return apply


# What is wrong with the index, how it gets wrong, and what the refusal says.
LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another format": (edit("format", to=2), "not one of format 1"),
    "a format that is true": (edit("format", to=True), "names no format"),
    "another layout": (edit("layout", to="tensor-1MiB/2"), "with the layout"),
    "no layout": (edit("layout", to=None), "names no format"),
    "an empty revision": (edit("revision", to=""), "not printable"),
    "a reference with a line break": (edit("reference", to="a\nb"), "not printable"),
    "half of a surrogate pair": (edit("architecture", to="\ud800"), "not printable"),
    "a validator without end": (edit("files", 0, "validator", to="e" * 9000), "too long"),
    "groups that are numbers": (edit("groups", 0, to=1), "wrong type"),
    "an unknown group": (edit("groups", 0, to="tail"), "groups are not"),
    "a group twice": (edit("groups", 0, to="head"), "groups are not"),
    "groups out of order": (edit("groups", to=["head", "layer.0", "layer.1", "embedding"]), "groups are not"),
    "a group that nothing is in": (lambda d: d["groups"].append("layer.7"), "groups are not"),
    "a number that int() does not read": (edit("groups", 1, to="layer." + "9" * 5000), "groups are not"),
    "no files": (edit("files", to=[]), "0 files"),
    "a path with a folder": (edit("files", 0, "path", to="a/b.safetensors"), "not the name"),
    "a path that leaves": (edit("files", 0, "path", to="../b.safetensors"), "not the name"),
    "a hidden file": (edit("files", 0, "path", to=".safetensors"), "not the name"),
    "another suffix": (edit("files", 0, "path", to="model.bin"), "not the name"),
    "a path with a control character": (edit("files", 0, "path", to="a\0.safetensors"), "not the name"),
    "a file twice": (edit("files", 0, "path", to="model-1.safetensors"), "a file stands in it twice"),
    "a size that is true": (edit("files", 0, "size_bytes", to=True), "a file is malformed"),
    "a size that is a fraction": (edit("files", 0, "size_bytes", to=72.0), "a file is malformed"),
    "a file that is too large": (edit("files", 0, "size_bytes", to=1 << 60), "more than"),
    "a header past the end": (edit("files", 0, "data_begin", to=1000), "cannot have"),
    "a header of nothing": (edit("files", 0, "data_begin", to=9), "cannot have"),
    "a digest in capitals": (edit("files", 1, "digest", to="sha256:" + "C" * 64), "not a digest"),
    "a digest too few": (edit("files", 0, "chunk_digests", to="A" * 42 + "A="), "chunks and 1 digests"),
    "half a digest": (edit("files", 0, "chunk_digests", to="AAAA"), "cut off"),
    "digests that are not base64": (edit("files", 0, "chunk_digests", to="!"), "cannot be used"),
    "base64 with bits of no byte": (edit("files", 0, "chunk_digests", to="A" * 42 + "B="), "not canonical"),
    "a tensor twice": (edit("tensors", 1, 0, to="embedding.0.0"), "a tensor stands in it twice"),
    "a tensor without a name": (edit("tensors", 0, 0, to=""), "name that is refused"),
    "a tensor in no file": (edit("tensors", 0, 1, to=2), "in no file or group"),
    "a tensor in file -1": (edit("tensors", 0, 1, to=-1), "in no file or group"),
    "a tensor in file false": (edit("tensors", 0, 1, to=False), "a tensor is malformed"),
    "a tensor in no group": (edit("tensors", 0, 6, to=4), "in no file or group"),
    "a tensor that lacks a value": (lambda d: d["tensors"][0].pop(), "a tensor is malformed"),
    "a tensor of another size": (edit("tensors", 0, 3, to=68), "does not fit its 4 bytes"),
    "an unknown type": (edit("tensors", 0, 4, to="Q8_0"), "'Q8_0' is unknown"),
    "a shape with true": (edit("tensors", 0, 5, to=[3, True]), "a tensor is malformed"),
    "a negative length": (edit("tensors", 0, 5, to=[-1, -3]), "not made of lengths"),
    "a hole": (lambda d: d["tensors"][0].__setitem__(slice(2, 6), [65, 67, "U8", [2]]), "does not begin where"),
    "an overlap": (lambda d: d["tensors"][1].__setitem__(slice(2, 6), [66, 72, "U8", [6]]), "does not begin where"),
    "bytes behind the last tensor": (edit("files", 1, "size_bytes", to=90), "the file at 90"),
    "a file that ends early": (edit("files", 1, "size_bytes", to=70), "the file at 70"),
    "tensors out of order": (lambda d: d["tensors"].reverse(), "not in execution order"),
    "a proof of another file": (edit("proofs", 0, "parts", 1, to=["config.json", 0, 1]), "no shard has"),
    "a proof past the end": (edit("proofs", 1, "parts", 0, 2, to=1000), "no shard has"),
    "a proof that runs backwards": (edit("proofs", 1, "parts", 0, 1, to=99), "no shard has"),
    "a proof of nothing": (edit("proofs", 0, "parts", to=[]), "no shard has"),
    "a proof of literals": (edit("proofs", 0, "parts", to=["AAAA"]), "no shard has"),
    "a proof without a digest": (edit("proofs", 0, "digest", to=None), "a proof is malformed"),
    "a part that is null": (edit("proofs", 0, "parts", 0, to=None), "a part of a proof"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_contradicts_itself_is_refused(lie: str) -> None:
    apply, reason = LIES[lie]
    document = json.loads(small_index().to_json())
    apply(document)
    with pytest.raises(UnsafeModel, match=reason):
        SeekIndex.from_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}",
        b"[" * 10_000,
        b"\xff",
        b'{"format":1,"format":1}',
        b'{"format":NaN}',
        b"1" * 5000,
    ],
)
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(UnsafeModel, match="seek index"):
        SeekIndex.from_json(data)


def test_an_index_that_is_too_large_is_refused_unread() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return (256 << 20) + 1

    with pytest.raises(UnsafeModel, match="larger than"):
        SeekIndex.from_json(Huge(small_index().to_json()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensors": small_index().tensors * 100_001}, "more than 500000 tensors"),
        ({"files": small_index().files * 2049}, "4098 files"),
        ({"proofs": small_index().proofs[:1] * 50_001}, "100000 parts"),
        ({"proofs": (Proof(digest(), (Literal(bytes((32 << 20) + 1)),)),)}, "more than 33554432 bytes"),
    ],
)
def test_an_index_has_bounds(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        check(replace(small_index(), **change))


def test_the_small_index_itself_has_nothing_wrong() -> None:
    check(small_index())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 80) | st.floats() | st.text(max_size=4) | st.just(10**19),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def places(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths to everything in a document."""
    found = [path] if path else []
    if isinstance(document, dict):
        return found + [place for key, value in document.items() for place in places(value, (*path, key))]
    if isinstance(document, list):
        return found + [place for key, value in enumerate(document) for place in places(value, (*path, key))]
    return found


SMALL_DOCUMENT = json.loads(small_index().to_json())


@given(
    changes=st.lists(st.tuples(st.sampled_from(places(SMALL_DOCUMENT)), json_values), min_size=1, max_size=2),
    text=st.tuples(st.integers(0, 900), st.binary(max_size=2)),
)
def test_nothing_but_a_refusal_comes_of_a_damaged_index(
    changes: list[tuple[tuple[str | int, ...], object]], text: tuple[int, bytes]
) -> None:
    document = copy.deepcopy(SMALL_DOCUMENT)
    for path, value in changes:
        try:
            edit(*path, to=value)(document)
        except (TypeError, IndexError, KeyError):  # the first change took away what the second one is in
            continue
    written = json.dumps(document).encode()
    position, inserted = text
    for data in (written, written[:position] + inserted + written[position + 1 :]):
        try:
            index = SeekIndex.from_json(data)
        except UnsafeModel:
            continue
        assert SeekIndex.from_json(index.to_json()) == index


@given(data=st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_of_noise(data: bytes) -> None:
    with pytest.raises(UnsafeModel):
        SeekIndex.from_json(data)


def test_trust_is_chunk_when_all_chunks_have_a_digest() -> None:
    index = with_digests(index_of([[(5, "layer.0")], [(5, "layer.1")]]))
    assert index.trust is Trust.CHUNK
    assert replace(index, files=(index.files[0], replace(index.files[1], chunk_digests=None))).trust is Trust.NONE


@pytest.mark.parametrize(
    ("ranges", "trust"),
    [
        ([(0, 69)], Trust.FILE),
        ([(40, 69), (0, 40)], Trust.FILE),
        ([(0, 68)], Trust.NONE),
        ([(1, 69)], Trust.NONE),
        ([(0, 30), (31, 69)], Trust.NONE),
        ([], Trust.NONE),
    ],
)
def test_trust_is_file_when_proofs_leave_out_no_byte(ranges: list[tuple[int, int]], trust: Trust) -> None:
    proofs = tuple(Proof(digest(), (FileRange("model-0.safetensors", *range_),)) for range_ in ranges)
    assert index_of([[(5, "layer.0")]], proofs).trust is trust


def test_a_tensor_is_found_by_its_name_and_weights_are_all_shards() -> None:
    index = small_index()
    assert index.tensors_by_name["layer.0.0.1"].size_bytes == 5
    assert index.weight_bytes == 2 * HEADER_BYTES + 17
