"""Tensors out of a store while their bytes are still coming."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import DigestMismatch, FetchFailed, SourceUnavailable, StoreDamaged
from headrace_models.layer_plan import EMBEDDING, HEAD
from headrace_models.reading import tensors as tensors_module
from headrace_models.reading.tensors import TensorBytes, TensorReader, iterate_tensors
from headrace_models.safetensors_header import read_header
from headrace_models.seek_index import IndexedTensor, SeekIndex
from headrace_models.store.model_reader import ModelReader
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.arriving_models import ArrivingModel, indexed, publish_empty
from tests.fakes.checkpoints import DTYPE_BITS, FakeTensor, write_checkpoint, write_weights

Chunks = set[tuple[int, int]]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A model of three shards and four layers, eight megabytes."""
    directory = tmp_path / "original"
    write_checkpoint(directory, shards=3)
    return directory


@pytest.fixture
def stored(original: Path, tmp_path: Path) -> StoredModel:
    """The same in a store, none of its weights there."""
    return publish_empty(original, tmp_path / "cache")


@pytest.fixture
def arriving(stored: StoredModel, original: Path) -> Iterator[ArrivingModel]:
    """Who writes it."""
    with ArrivingModel(stored, original) as model:
        yield model


@pytest.fixture
def reader(stored: StoredModel, arriving: ArrivingModel) -> Iterator[ModelReader]:
    """Who reads it."""
    with stored.reader() as model_reader:
        yield model_reader


def expected(original: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the original files say of every tensor."""
    found = {}
    for path in original.glob("*.safetensors"):
        content = path.read_bytes()
        data = content[8 + int.from_bytes(content[:8], "little") :]
        for name, entry in read_header(path).items():
            found[name] = entry.dtype, entry.shape, data[entry.begin : entry.end]
    return found


def contents(tensors: Iterator[TensorBytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {tensor.name: (tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in tensors}


def chunks_of(index: SeekIndex, wanted: Callable[[str], bool]) -> Chunks:
    """The chunks of tensors, by group."""
    return {
        (tensor.file, chunk)
        for tensor in index.tensors
        if wanted(index.groups[tensor.group])
        for chunk in index.layouts[tensor.file].covering(tensor.begin, tensor.end)
    }


def test_every_tensor_is_what_the_file_holds(arriving: ArrivingModel, reader: ModelReader, original: Path) -> None:
    arriving.bring_on_demand()
    assert contents(iterate_tensors(reader)) == expected(original)


def test_safetensors_reads_the_same(arriving: ArrivingModel, reader: ModelReader, original: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    arriving.bring_all()
    theirs = {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for path in original.glob("*.safetensors")
        for name, entry in safetensors.deserialize(path.read_bytes())
    }
    assert contents(iterate_tensors(reader)) == theirs


def test_a_walk_goes_in_execution_order(arriving: ArrivingModel, reader: ModelReader) -> None:
    arriving.bring_all()
    names = [tensor.name for tensor in iterate_tensors(reader)]
    assert names == [tensor.name for tensor in reader.index.tensors]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-1] == "model.norm.weight"


@pytest.mark.parametrize("dtype", [*DTYPE_BITS])
def test_every_data_type_has_a_place(dtype: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original", num_layers=1, hidden=16)
    write_weights(
        tmp_path / "original",
        [FakeTensor("one", (4, 8), dtype), FakeTensor("empty", (0, 8), dtype), FakeTensor("odd", (3,), "U8")],
    )
    stored = publish_empty(tmp_path / "original", tmp_path / "cache")
    with ArrivingModel(stored, tmp_path / "original") as arriving, stored.reader() as reader:
        arriving.bring_all()
        assert contents(iterate_tensors(reader)) == expected(tmp_path / "original")


def test_a_walk_over_groups_waits_for_no_other_group(arriving: ArrivingModel, reader: ModelReader) -> None:
    arriving.bring_on_demand()
    names = {tensor.name for tensor in iterate_tensors(reader, groups=frozenset({"layer.2", HEAD, "layer.99"}))}
    assert names == {t.name for t in reader.index.tensors if reader.index.groups[t.group] in {"layer.2", HEAD}}
    assert set(arriving.brought) == chunks_of(reader.index, lambda group: group in {"layer.2", HEAD})


def test_a_tensor_that_is_not_wanted_is_not_waited_for(arriving: ArrivingModel, reader: ModelReader) -> None:
    arriving.bring_on_demand()
    found = [
        tensor.name for tensor in iterate_tensors(reader, wanted=lambda name: name.endswith("1.mlp.up_proj.weight"))
    ]
    assert found == ["model.layers.1.mlp.up_proj.weight"]
    tensor = reader.index.tensors_by_name[found[0]]
    covering = reader.index.layouts[tensor.file].covering(tensor.begin, tensor.end)
    assert set(arriving.brought) == {(tensor.file, chunk) for chunk in covering}


def test_one_tensor_waits_for_its_own_chunks_alone(
    arriving: ArrivingModel, reader: ModelReader, original: Path
) -> None:
    arriving.bring_on_demand()
    name = "model.layers.3.mlp.down_proj.weight"
    with TensorReader(reader) as tensors:
        assert bytes(tensors.tensor(name).data) == expected(original)[name][2]
    assert len(arriving.brought) == 1


def test_a_group_by_its_name(arriving: ArrivingModel, reader: ModelReader) -> None:
    arriving.bring_on_demand()
    with TensorReader(reader) as tensors:
        assert [tensor.name for tensor in tensors.group(EMBEDDING)] == ["model.embed_tokens.weight"]
        assert set(arriving.brought) == chunks_of(reader.index, lambda group: group == EMBEDDING)


def test_names_that_are_not_there_are_key_errors(reader: ModelReader) -> None:
    with TensorReader(reader) as tensors:
        for ask in (tensors.tensor, tensors.group, tensors.release_group):
            with pytest.raises(KeyError, match="nothing"):
                ask("nothing")


def test_a_reader_blocks_until_the_writer_puts_the_chunk(arriving: ArrivingModel, reader: ModelReader) -> None:
    got: list[str] = []
    first_asked = threading.Event()

    def walk() -> None:
        got.extend(tensor.name for tensor in iterate_tensors(reader, groups=frozenset({EMBEDDING, "layer.0"})))

    thread = threading.Thread(target=walk)
    thread.start()
    arriving.bring(sorted(chunks_of(reader.index, lambda group: group == EMBEDDING)))
    while not got:
        first_asked.wait(0.001)
    layer = sorted(chunks_of(reader.index, lambda group: group == "layer.0"))
    arriving.bring(layer[:-1])
    first_asked.wait(0.02)
    assert len(got) < len([t for t in reader.index.tensors if reader.index.groups[t.group] in {EMBEDDING, "layer.0"}])
    arriving.bring(layer[-1:])
    thread.join()
    assert "model.layers.0.mlp.up_proj.weight" in got


def test_what_comes_next_is_demanded_before_it_is_waited_for(
    arriving: ArrivingModel, reader: ModelReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "WINDOW_BYTES", 2 << 20)
    arriving.bring(sorted(chunks_of(reader.index, lambda group: group == EMBEDDING)))
    walk = iterate_tensors(reader)
    assert next(walk).name == "model.embed_tokens.weight"
    embedding = reader.index.tensors_by_name["model.embed_tokens.weight"].size_bytes
    ahead = arriving.demanded()
    sizes = [end - begin for begin, end in (reader.index.layouts[file].range_of(chunk) for file, chunk in ahead)]
    assert chunks_of(reader.index, lambda group: group == "layer.0") <= ahead
    assert sum(sizes) <= (2 << 20) - embedding
    arriving.bring_all()
    assert len(list(walk)) == len(reader.index.tensors) - 1
    assert arriving.demanded() == set()  # everything was there


@given(
    sizes=st.lists(st.integers(0, 40 << 20), max_size=30),
    held=st.sets(st.integers(0, 29)),
)
def test_the_window_is_bounded_and_leaves_nothing_out(sizes: list[int], held: set[int]) -> None:
    log = FakeDemands(held)
    offsets = [sum(sizes[:position]) for position in range(len(sizes))]
    tensors = [
        tensors_of(position, offset, size) for position, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
    ]
    window = tensors_module._Window(log, tensors)  # type: ignore[arg-type]
    for position in range(len(sizes)):
        window.move_to(position)
        assert position in log.asked
        ahead = sum(size for number, size in enumerate(sizes) if number >= position and number in log.asked)
        assert ahead <= max(tensors_module.WINDOW_BYTES, sizes[position])
    assert log.asked == [*range(len(sizes))]
    assert log.wanted == [position for position in range(len(sizes)) if position not in held]


class FakeDemands:
    """A reader that keeps what is demanded; the tensor's number is its shard."""

    def __init__(self, held: set[int]) -> None:
        self.held = held
        self.asked: list[int] = []
        self.wanted: list[int] = []

    def is_present(self, file: int, begin: int, end: int) -> bool:
        self.asked.append(file)
        return file in self.held

    def want(self, file: int, begin: int, end: int) -> None:
        self.wanted.append(file)


def tensors_of(number: int, offset: int, size: int) -> IndexedTensor:
    return IndexedTensor(str(number), number, offset, offset + size, "U8", (size,), 0)


def test_a_failed_fetch_is_told_to_who_waits(stored: StoredModel, original: Path) -> None:
    with stored.reader() as reader:
        with ArrivingModel(stored, original) as arriving:
            arriving.writer.fail(SourceUnavailable("no route to the registry"))
        with pytest.raises(FetchFailed, match="no route to the registry"):
            next(iterate_tensors(reader))


@pytest.mark.parametrize("change", ["shorter", "gone"])
def test_a_shard_that_was_cut_off_is_damage(
    change: str, arriving: ArrivingModel, reader: ModelReader, stored: StoredModel
) -> None:
    arriving.bring_all()
    path = stored.shard_path(0)
    if change == "gone":
        path.unlink()
    else:
        with path.open("r+b") as shard:
            shard.truncate(stored.index.files[0].size_bytes - 1)
    with pytest.raises(StoreDamaged, match=stored.index.files[0].path):
        list(iterate_tensors(reader))


def test_a_local_model_is_read_where_it_is(original: Path, tmp_path: Path) -> None:
    index = indexed(original, Trust.NONE)
    with ModelStore(tmp_path / "cache").draft(index.reference, index.revision) as draft:
        stored = draft.publish(index, directory=original, trust=Trust.NONE)
    with stored.reader() as reader:
        assert contents(iterate_tensors(reader)) == expected(original)


class TestProof:
    """Digests of whole files are checked when the last byte is there."""

    @pytest.fixture
    def stored(self, original: Path, tmp_path: Path) -> StoredModel:
        return publish_empty(original, tmp_path / "cache", trust=Trust.FILE)

    def test_a_full_walk_ends_when_the_files_are_proven(self, arriving: ArrivingModel, reader: ModelReader) -> None:
        arriving.bring_all()
        walk = iterate_tensors(reader)
        for _ in reader.index.tensors:
            next(walk)
        rest: list[list[TensorBytes]] = []
        thread = threading.Thread(target=lambda: rest.append(list(walk)))
        thread.start()
        thread.join(0.03)
        assert thread.is_alive()
        arriving.writer.seal()
        thread.join()
        assert rest == [[]]

    def test_a_full_walk_over_wrong_bytes_ends_with_an_error(
        self, stored: StoredModel, original: Path, reader: ModelReader, arriving: ArrivingModel
    ) -> None:
        name = stored.index.files[1].path
        content = bytearray((original / name).read_bytes())
        content[-1] ^= 1
        (original / name).write_bytes(content)
        arriving.bring_all()
        walk = iterate_tensors(reader)
        for _ in reader.index.tensors:
            next(walk)
        with pytest.raises(DigestMismatch) as caught:
            arriving.writer.seal()
        arriving.writer.fail(caught.value)
        arriving.writer.close()
        with pytest.raises(DigestMismatch, match="have proved wrong"):
            next(walk)

    def test_a_part_of_the_model_is_given_out_unproven(self, arriving: ArrivingModel, reader: ModelReader) -> None:
        arriving.bring_on_demand()
        assert list(iterate_tensors(reader, groups=frozenset({"layer.0"})))
        assert not arriving.stored.status().proven


def test_tensors_outlive_the_one_who_gave_them_out(
    arriving: ArrivingModel, reader: ModelReader, original: Path
) -> None:
    arriving.bring_all()
    kept = list(iterate_tensors(reader))
    assert contents(iter(kept)) == expected(original)


def test_tensors_can_be_changed_in_memory_without_changing_the_store(
    arriving: ArrivingModel, reader: ModelReader, original: Path
) -> None:
    arriving.bring_all()
    with TensorReader(reader) as tensors:
        data = tensors.tensor("model.norm.weight").data
        data[:] = bytes(len(data))
    with TensorReader(reader) as tensors:
        assert bytes(tensors.tensor("model.norm.weight").data) == expected(original)["model.norm.weight"][2]


def test_a_released_group_is_read_again_from_the_file(
    arriving: ArrivingModel, reader: ModelReader, original: Path
) -> None:
    arriving.bring_all()
    with TensorReader(reader) as tensors:
        data = tensors.tensor("model.embed_tokens.weight").data
        right = bytes(data)
        data[1 << 19 : 1 << 20] = bytes(1 << 19)
        assert bytes(data) != right
        tensors.release_group(EMBEDDING)
        assert bytes(data) == right
        tensors.release_group("layer.0")  # nothing of it was read, and small tensors share their pages
        assert contents(tensors.iterate()) == expected(original)


def test_a_release_leaves_the_neighbours_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "original", hidden=80)  # all in one shard, and no tensor begins or ends at a page
    stored = publish_empty(tmp_path / "original", tmp_path / "cache")
    with (
        ArrivingModel(stored, tmp_path / "original") as arriving,
        stored.reader() as reader,
        TensorReader(reader) as tensors,
    ):
        arriving.bring_all()
        groups = {name: [tensor.data for tensor in tensors.group(name)] for name in reader.index.groups}
        for data in (data for members in groups.values() for data in members):
            data[:] = b"\x07" * len(data)
        tensors.release_group("layer.1")
        released = groups.pop("layer.1")
        assert any(set(bytes(data)) != {7} for data in released)
        assert all(set(bytes(data)) == {7} for members in groups.values() for data in members)
