"""Indexes are made from headers by few reads, and whoever contradicts whom, the model is refused."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace_models import index_building
from headrace_models.digest import Sha256, sha256_of_file
from headrace_models.errors import (
    DigestMismatch,
    SourceChanged,
    SourceUnavailable,
    SourceUnusable,
    UnsafeModel,
)
from headrace_models.index_building import (
    GUESSED_HEADER_BYTES,
    BuiltIndex,
    build_index,
    index_of_directory,
    with_chunk_digests,
)
from headrace_models.model_files import choose_files
from headrace_models.safetensors_header import read_header
from headrace_models.seek_index import SeekIndex
from headrace_models.seek_index_json import encode
from headrace_models.sources.base import FileRange, Literal, Proof
from headrace_models.trust import Trust
from tests.fakes.checkpoints import FakeTensor, raw_safetensors, safetensors_bytes, write_checkpoint
from tests.fakes.memory_source import MemorySource

PINNED = "headrace.index.json"
LLAMA = "LlamaForCausalLM"
CONFIG: Mapping[str, object] = {"architectures": [LLAMA]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three shards and their index."""
    write_checkpoint(tmp_path / "model", shards=3, num_layers=11, hidden=64)
    return tmp_path / "model"


def build(source: MemorySource, config: Mapping[str, Any] = CONFIG) -> BuiltIndex:
    return build_index(source, "hf://org/model", choose_files(source.files), config)


def model_of(**shards: bytes) -> dict[str, bytes]:
    """The files of a model with these shards."""
    return {"config.json": b"{}", **{f"{name}.safetensors": data for name, data in shards.items()}}


def shard(*names: str) -> bytes:
    return safetensors_bytes([FakeTensor(name, (2, 3)) for name in names])


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_an_index_says_where_every_tensor_is(directory: Path, ignores_ranges: bool) -> None:
    source = MemorySource.from_directory(directory)
    source.ignores_ranges = ignores_ranges
    index = build(source).index
    assert (index.reference, index.revision, index.architecture) == ("hf://org/model", source.revision, LLAMA)
    headers = {path.name: read_header(path) for path in sorted(directory.glob("*.safetensors"))}
    assert [file.path for file in index.files] == list(headers)
    found = {
        tensor.name: (index.files[tensor.file].path, tensor.dtype, tensor.shape, tensor.size_bytes)
        for tensor in index.tensors
    }
    assert found == {
        name: (path, tensor.dtype, tensor.shape, tensor.size_bytes)
        for path, tensors in headers.items()
        for name, tensor in tensors.items()
    }
    for tensor in index.tensors:
        data = (directory / index.files[tensor.file].path).read_bytes()[tensor.begin : tensor.end]
        dtype = "F32" if "norm" in tensor.name else "BF16"
        assert data == FakeTensor(tensor.name, tensor.shape, dtype).data


def test_tensors_are_in_execution_order_and_not_in_the_file_s(directory: Path) -> None:
    index = build(MemorySource.from_directory(directory)).index
    assert index.groups == ("embedding", *(f"layer.{number}" for number in range(11)), "head")
    assert [tensor.group for tensor in index.tensors] == sorted(tensor.group for tensor in index.tensors)


def test_the_headers_that_were_read_come_with_the_index(directory: Path) -> None:
    built = build(MemorySource.from_directory(directory))
    for file in built.index.files:
        assert built.headers[file.path] == (directory / file.path).read_bytes()[: file.data_begin]


def test_one_request_for_each_shard_and_one_for_the_weights_index(directory: Path) -> None:
    source = MemorySource.from_directory(directory)
    build(source)
    assert len(source.requests) == 4
    assert source.bytes_read <= 3 * GUESSED_HEADER_BYTES + source.file("model.safetensors.index.json").size_bytes


def test_only_a_header_longer_than_guessed_takes_a_second_request() -> None:
    long = safetensors_bytes([FakeTensor("w", (1,))], metadata={"note": "n" * (2 * GUESSED_HEADER_BYTES)})
    source = MemorySource(model_of(a=long, b=shard("v")))
    built = build(source)
    assert len(built.headers["a.safetensors"]) > 2 * GUESSED_HEADER_BYTES
    assert sorted(source.requests) == [
        ("a.safetensors", 0, GUESSED_HEADER_BYTES),
        ("a.safetensors", GUESSED_HEADER_BYTES, built.index.files[0].data_begin),
        ("b.safetensors", 0, len(shard("v"))),
    ]


def test_shards_are_read_at_once_as_far_as_is_polite() -> None:
    source = MemorySource(model_of(**{f"s{number}": shard(f"w{number}") for number in range(9)}))
    source.max_connections = 3
    together = threading.Barrier(3, timeout=20)

    def wait(*_: object) -> None:
        together.wait()

    source.before_read = wait
    build(source)
    assert source.most_at_once == 3


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": ["a\nb"]}, {"architectures": "x"}])
def test_an_architecture_that_is_no_name_is_none(config: Mapping[str, Any]) -> None:
    assert build(MemorySource(model_of(a=shard("w"))), config).index.architecture is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (model_of(a=shard("w", "v"), b=shard("v")), "'v' is in two shards"),
        (model_of(a=shard("w")[:-1]), "cut off"),
        (model_of(a=shard("w") + b"\0"), "the file at"),
        (model_of(a=b"\xff" * 100), "its header would have"),
        (model_of(a=raw_safetensors({"w": 1})), "malformed"),
    ],
)
def test_shards_that_are_none_are_refused(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        build(MemorySource(files))


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"w": "b.safetensors", "v": "b.safetensors"}, "which it does not"),
        ({"w": "b.safetensors", "v": "a.safetensors"}, "which it does not"),
        ({"w": "a.safetensors", "x": "b.safetensors"}, "which it does not"),
        ({"w": "c.safetensors"}, "is missing"),
        ({}, "in 0 shards"),
    ],
)
def test_a_weights_index_that_contradicts_the_headers_is_refused(weight_map: dict[str, str], reason: str) -> None:
    index = json.dumps({"weight_map": weight_map}).encode()
    files = {**model_of(a=shard("w"), b=shard("v")), "model.safetensors.index.json": index}
    with pytest.raises(UnsafeModel, match=reason):
        build(MemorySource(files))


def test_tensors_that_the_weights_index_does_not_name_count_and_shards_that_it_does_not_name_do_not() -> None:
    index = json.dumps({"weight_map": {"w": "a.safetensors"}}).encode()
    files = {**model_of(a=shard("w", "extra"), b=shard("w")), "model.safetensors.index.json": index}
    built = build(MemorySource(files)).index
    assert set(built.tensors_by_name) == {"w", "extra"}
    assert [file.path for file in built.files] == ["a.safetensors"]


def test_a_weights_index_with_another_digest_than_stated_is_refused() -> None:
    index = json.dumps({"weight_map": {"w": "a.safetensors"}}).encode()
    source = MemorySource({**model_of(a=shard("w")), "model.safetensors.index.json": index})
    source.files = tuple(replace(file, digest=Sha256("0" * 64), validator=None) for file in source.files)
    with pytest.raises(DigestMismatch, match="model.safetensors.index.json"):
        build(source)


@pytest.mark.parametrize(
    ("bound", "reason"), [("MAX_HEADERS_BYTES", "headers of [0-9]+ bytes"), ("MAX_TENSORS", "more than 1 tensors")]
)
def test_headers_and_tensors_of_all_shards_together_are_bounded(
    monkeypatch: pytest.MonkeyPatch, bound: str, reason: str
) -> None:
    monkeypatch.setattr(index_building, bound, 1)
    with pytest.raises(UnsafeModel, match=reason):
        build(MemorySource(model_of(a=shard("w"), b=shard("v"))))


def test_errors_of_the_source_are_passed_on() -> None:
    source = MemorySource(model_of(a=shard("w")))
    source.change("a.safetensors", shard("v"))
    with pytest.raises(SourceChanged):
        build(source)
    source = MemorySource(model_of(a=shard("w")))
    source.breaks_after = 20
    with pytest.raises(SourceUnavailable):
        build(source)


def test_a_source_that_gives_less_than_was_asked_for_may_be_asked_again() -> None:
    source = MemorySource(model_of(a=shard("w")), with_digests=False)
    source.files = tuple(replace(file, size_bytes=file.size_bytes, validator=None) for file in source.files)
    source.contents["a.safetensors"] = Short(shard("w"))
    with pytest.raises(SourceUnavailable, match="gave 10 bytes"):
        build(source)


class Short(bytes):
    """Bytes that end after ten, whatever their length says."""

    def __getitem__(self, key: Any) -> Any:
        return bytes(self)[:10][key]


# ------------------------------------------------------------------------------------------------ proofs and trust


def test_files_with_digests_are_proven_and_others_are_not(directory: Path) -> None:
    assert build(MemorySource.from_directory(directory)).index.trust is Trust.FILE
    index = build(MemorySource.from_directory(directory, with_digests=False)).index
    assert (index.trust, index.proofs) == (Trust.NONE, ())


def tar_proof(*parts: Literal | FileRange) -> Proof:
    return Proof(Sha256("d" * 64), parts)


def test_a_proof_over_shards_and_small_files_stands_on_the_shards_alone() -> None:
    data = shard("w")
    source = MemorySource(model_of(a=data), with_digests=False)
    shard_range = FileRange("a.safetensors", 0, len(data))
    source.proofs = (tar_proof(Literal(b"tar"), FileRange("config.json", 0, 2), shard_range),)
    built = build(source)
    assert built.index.proofs == (tar_proof(Literal(b"tar"), Literal(b"{}"), shard_range),)
    assert (built.index.trust, built.notes) == (Trust.FILE, ())


def test_a_proof_over_a_shard_and_a_large_file_is_left_out_and_said() -> None:
    data = shard("w")
    source = MemorySource({**model_of(a=data), "blob": bytes((32 << 20) + 1)}, with_digests=False)
    source.proofs = (tar_proof(FileRange("blob", 0, (32 << 20) + 1), FileRange("a.safetensors", 0, len(data))),)
    built = build(source)
    assert (built.index.trust, built.index.proofs) == (Trust.NONE, ())
    assert built.notes == (
        "a.safetensors: cannot be checked, as 33554433 bytes of other files are under the same digest",
    )


@pytest.mark.parametrize(
    "parts",
    [
        (FileRange("a.safetensors", 0, 10**6),),
        (FileRange("a.safetensors", 0, 10), FileRange("config.json", 0, 3)),
        (FileRange("a.safetensors", 0, 10), FileRange("config.json", 2, 1)),
        (FileRange("a.safetensors", 0, 10), FileRange("absent.json", 0, 1)),
    ],
)
def test_a_proof_of_bytes_that_are_not_there_is_refused(parts: tuple[FileRange, ...]) -> None:
    source = MemorySource(model_of(a=shard("w")), with_digests=False)
    source.proofs = (tar_proof(*parts),)
    with pytest.raises(UnsafeModel, match="does not have|no shard has"):
        build(source)


# --------------------------------------------------------------------------------------------------- pinned indexes


def source_with_pinned(directory: Path, edit: Callable[[SeekIndex], SeekIndex | bytes]) -> MemorySource:
    """The directory as a source that pins an index: the true one, edited."""
    edited = edit(index_of_directory(directory, "file:///elsewhere", digests=True))
    (directory / PINNED).write_bytes(edited if isinstance(edited, bytes) else edited.to_json())
    return MemorySource.from_directory(directory, pinned_index=PINNED)


def test_a_pinned_index_adds_the_digests_of_all_chunks(directory: Path) -> None:
    source = source_with_pinned(directory, lambda index: index)
    built = build(source)
    assert (built.index.trust, built.notes) == (Trust.CHUNK, ())
    assert (built.index.reference, built.index.revision) == ("hf://org/model", source.revision)
    assert [file.validator for file in built.index.files] == [
        source.file(file.path).validator for file in built.index.files
    ]
    for file, layout in zip(built.index.files, built.index.layouts, strict=True):
        data = (directory / file.path).read_bytes()
        chunks = [data[slice(*layout.range_of(chunk))] for chunk in range(len(layout))]
        assert file.chunk_digests == tuple(Sha256(hashlib.sha256(chunk).hexdigest()) for chunk in chunks)


def in_one_group(index: SeekIndex) -> SeekIndex:
    """As a version that plans groups otherwise would have made it."""
    tensors = sorted(
        (replace(tensor, group=0) for tensor in index.tensors), key=lambda tensor: (tensor.file, tensor.begin)
    )
    files = tuple(replace(file, chunk_digests=None) for file in index.files)
    return replace(index, groups=("other",), tensors=tuple(tensors), files=files)


def test_the_groups_of_a_pinned_index_are_taken_over_since_its_chunks_follow_from_them(directory: Path) -> None:
    pinned = with_chunk_digests(
        in_one_group(index_of_directory(directory, "file:///elsewhere", digests=False)), directory
    )
    index = build(source_with_pinned(directory, lambda _: pinned)).index
    assert (index.groups, index.trust) == (("other",), Trust.CHUNK)
    assert index.tensors == pinned.tensors


def reversed_files(index: SeekIndex) -> SeekIndex:
    last = len(index.files) - 1
    tensors = [replace(tensor, file=last - tensor.file) for tensor in index.tensors]
    tensors.sort(key=lambda tensor: (tensor.group, tensor.file, tensor.begin, tensor.end, tensor.name))
    return replace(index, files=index.files[::-1], tensors=tuple(tensors))


def test_the_order_of_files_in_a_pinned_index_does_not_matter(directory: Path) -> None:
    index = build(source_with_pinned(directory, reversed_files)).index
    assert index.trust is Trust.CHUNK
    for tensor in index.tensors:
        assert tensor.name in read_header(directory / index.files[tensor.file].path)


def with_first_file(index: SeekIndex, **changes: Any) -> SeekIndex:
    return replace(index, files=(replace(index.files[0], **changes), *index.files[1:]))


def renamed(index: SeekIndex) -> SeekIndex:
    first = index.tensors[0]
    return replace(index, tensors=(replace(first, name="another"), *index.tensors[1:]))


def reshaped(index: SeekIndex) -> SeekIndex:
    first = index.tensors[0]
    return replace(index, tensors=(replace(first, shape=first.shape[::-1]), *index.tensors[1:]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (renamed, "of other tensors"),
        (reshaped, "of other tensors"),
        (lambda index: with_first_file(index, path="x.safetensors"), "of other files"),
        (lambda index: with_first_file(index, digest=Sha256("0" * 64)), "of another model-00001"),
        (lambda _: index_of_other_model(), "of other files"),
        (lambda _: b"{", "cannot be used"),
        (lambda index: index.to_json()[:-1], "cannot be used"),
        (lambda index: index.to_json().replace(b'"group', b'"Group'), "cannot be used"),
        (lambda index: with_first_file(index, chunk_digests=()), "0 digests of chunks"),
    ],
)
def test_a_pinned_index_that_lies_is_refused(
    directory: Path, edit: Callable[[SeekIndex], SeekIndex | bytes], reason: str
) -> None:
    with pytest.raises(UnsafeModel, match=reason):
        build(source_with_pinned(directory, edit))


def index_of_other_model() -> SeekIndex:
    return build(MemorySource(model_of(a=shard("w")))).index


def test_a_pinned_index_of_another_size_is_refused(directory: Path) -> None:
    def longer(index: SeekIndex) -> SeekIndex:
        last = max((t for t in index.tensors if t.file == 0), key=lambda tensor: tensor.end)
        grown = replace(last, end=last.end + 2, dtype="U8", shape=(last.size_bytes + 2,))
        tensors = tuple(grown if tensor is last else tensor for tensor in index.tensors)
        return with_first_file(replace(index, tensors=tensors), size_bytes=grown.end, digest=None, chunk_digests=None)

    with pytest.raises(UnsafeModel, match="of another model-00001"):
        build(source_with_pinned(directory, longer))


@pytest.mark.parametrize("field", [b'"format":1', b'"layout":"tensor-1MiB/1"'])
def test_a_pinned_index_of_another_version_is_left_aside_and_said(directory: Path, field: bytes) -> None:
    other = field.replace(b"1", b"2")
    built = build(source_with_pinned(directory, lambda index: index.to_json().replace(field, other)))
    assert built.index.trust is Trust.FILE
    assert built.notes == (f"{PINNED} is not used: it is written for another version",)


def test_an_index_that_no_digest_binds_is_left_aside_and_said(directory: Path) -> None:
    source = source_with_pinned(directory, lambda index: index)
    source.files = tuple(replace(file, digest=None) for file in source.files)
    built = build(source)
    assert all(file.chunk_digests is None for file in built.index.files)
    assert built.notes == (f"{PINNED} is not used: no digest binds it to the model",)


def test_a_pinned_index_with_another_digest_than_stated_is_refused(directory: Path) -> None:
    source = source_with_pinned(directory, lambda index: index)
    source.files = tuple(
        replace(file, digest=Sha256("0" * 64)) if file.path == PINNED else file for file in source.files
    )
    with pytest.raises(DigestMismatch, match=PINNED):
        build(source)


def test_a_pinned_index_that_is_too_large_is_refused_unread(directory: Path) -> None:
    source = source_with_pinned(directory, lambda index: index)
    source.files = tuple(
        replace(file, size_bytes=(256 << 20) + 1) if file.path == PINNED else file for file in source.files
    )
    with pytest.raises(UnsafeModel, match="larger than"):
        build(source)
    assert PINNED not in {path for path, _, _ in source.requests}


def test_a_pinned_index_that_is_not_listed_is_the_source_s_fault(directory: Path) -> None:
    source = MemorySource.from_directory(directory, pinned_index="absent.json")
    with pytest.raises(SourceUnusable, match="absent.json"):
        build(source)


def headers_of(directory: Path, index: SeekIndex) -> dict[str, bytes]:
    return {file.path: (directory / file.path).read_bytes()[: file.data_begin] for file in index.files}


def with_headers(directory: Path, edit: Callable[[dict[str, bytes]], object] = lambda _: None) -> MemorySource:
    """The directory as a source whose pinned index brings the shards' headers, edited."""

    def encoded(index: SeekIndex) -> bytes:
        headers = headers_of(directory, index)
        edit(headers)
        return encode(index, headers)

    return source_with_pinned(directory, encoded)


def test_headers_that_a_pinned_index_brings_are_not_fetched_to_know_the_model(directory: Path) -> None:
    plain = build(source_with_pinned(directory, lambda index: index)).index
    source = with_headers(directory)
    built = build(source)
    assert built.index.tensors == plain.tensors
    assert (built.index.trust, built.notes) == (Trust.CHUNK, ())
    assert {path for path, _, _ in source.requests} == {PINNED, "model.safetensors.index.json"}
    assert built.headers == {}  # so the fetch brings them from the shards, and compares


def test_brought_headers_with_other_digests_than_their_chunks_are_refused(directory: Path) -> None:
    def bend(headers: dict[str, bytes]) -> None:
        path = min(headers)
        headers[path] = headers[path].replace(b"BF16", b"F16 ", 1)

    def cut(headers: dict[str, bytes]) -> None:
        headers[min(headers)] = headers[min(headers)][:-1]

    def grow(headers: dict[str, bytes]) -> None:
        headers[min(headers)] += b" "

    for edit in (bend, cut, grow):
        with pytest.raises(UnsafeModel, match="another header of model-00001"):
            build(with_headers(directory, edit))


def test_an_index_that_contradicts_the_headers_that_it_brings_is_refused(directory: Path) -> None:
    source = source_with_pinned(directory, lambda index: encode(renamed(index), headers_of(directory, index)))
    with pytest.raises(UnsafeModel, match="of other tensors"):
        build(source)


def test_headers_are_read_where_not_all_of_them_are_brought_or_nothing_checks_them(directory: Path) -> None:
    def unchecked(index: SeekIndex) -> bytes:
        return encode(with_first_file(index, chunk_digests=None), headers_of(directory, index))

    for source in (
        with_headers(directory, lambda headers: headers.pop(min(headers))),
        source_with_pinned(directory, unchecked),
    ):
        built = build(source)
        assert set(built.headers) == {file.path for file in built.index.files}
        assert set(built.headers) <= {path for path, _, _ in source.requests}


@pytest.mark.parametrize("headers", [b"[]", b'{"a":1}', b'{"a":"_"}'])
def test_brought_headers_that_are_malformed_are_refused(directory: Path, headers: bytes) -> None:
    def malformed(index: SeekIndex) -> bytes:
        return index.to_json()[:-1] + b',"headers":' + headers + b"}"

    with pytest.raises(UnsafeModel, match="cannot be used"):
        build(source_with_pinned(directory, malformed))


# ------------------------------------------------------------------------------------------------- local directories


def test_a_directory_is_indexed_where_it_lies(directory: Path) -> None:
    index = index_of_directory(directory, "file:///model", digests=False)
    from_source = build(MemorySource.from_directory(directory)).index
    assert index.tensors == from_source.tensors
    assert (index.reference, index.architecture, index.trust) == ("file:///model", LLAMA, Trust.NONE)


def test_digests_of_a_directory_are_those_of_its_bytes(directory: Path) -> None:
    index = index_of_directory(directory, "file:///model", digests=True)
    assert index.trust is Trust.CHUNK
    assert [file.digest for file in index.files] == [sha256_of_file(directory / file.path) for file in index.files]
    assert SeekIndex.from_json(index.to_json()) == index


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-1], SourceChanged),
        (lambda data: data + b"\0", SourceChanged),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), DigestMismatch),
    ],
)
def test_a_shard_that_is_not_the_indexed_one_gets_no_digests(
    directory: Path, change: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    index = index_of_directory(directory, "file:///model", digests=True)
    path = directory / index.files[1].path
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(error, match=index.files[1].path):
        with_chunk_digests(index, directory)
