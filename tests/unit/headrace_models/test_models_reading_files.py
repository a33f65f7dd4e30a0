"""Shards as seekable files, and headers as files without data."""

import io
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_models.errors import FetchFailed, NoSpace, StoreDamaged, UnsafeModel
from headrace_models.reading.header_files import write_header_files
from headrace_models.reading.seekable_file import SeekableFile
from headrace_models.safetensors_header import read_header
from headrace_models.store.model_reader import ModelReader
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.arriving_models import ArrivingModel, indexed, publish_empty
from tests.fakes.checkpoints import write_checkpoint

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A model of two shards, four megabytes."""
    directory = tmp_path / "original"
    write_checkpoint(directory, num_layers=2, shards=2)
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


@pytest.fixture
def file(reader: ModelReader) -> Iterator[SeekableFile]:
    """The second shard."""
    with SeekableFile(reader, 1) as shard:
        yield shard


@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_reads_as_the_original_file_does(
    data: st.DataObject, arriving: ArrivingModel, file: SeekableFile, original: Path
) -> None:
    arriving.bring_all()
    with (original / SHARD).open("rb", buffering=0) as plain:
        file.seek(0)
        for _ in range(data.draw(st.integers(1, 8))):
            whence = data.draw(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
            offset = data.draw(st.integers(-1000, file.size + 1000))
            size = data.draw(st.one_of(st.none(), st.integers(-1, 70_000)))
            try:
                position = plain.seek(offset, whence)
            except OSError:
                with pytest.raises(ValueError, match="negative"):
                    file.seek(offset, whence)
                continue
            assert file.seek(offset, whence) == position
            assert file.read(size) == plain.read(-1 if size is None else size)
            assert file.tell() == max(plain.tell(), position)


def test_it_is_a_file_for_others(arriving: ArrivingModel, file: SeekableFile, original: Path) -> None:
    arriving.bring_on_demand()
    content = (original / SHARD).read_bytes()
    buffered = io.BufferedReader(file, 4096)
    assert buffered.peek(8)[:8] == content[:8]
    buffered.seek(-100, os.SEEK_END)
    assert buffered.read() == content[-100:]
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert (file.name, file.size) == (SHARD, len(content))
    assert file.seek(0) == 0
    assert file.readall() == content
    buffered.detach()


def test_a_read_brings_the_chunks_that_it_touches_and_no_other(
    arriving: ArrivingModel, file: SeekableFile, original: Path
) -> None:
    arriving.bring_on_demand()
    layout = arriving.stored.index.layouts[1]
    begin, end = layout.range_of(3)
    file.seek(end - 10)
    assert file.read(20) == (original / SHARD).read_bytes()[end - 10 : end + 10]
    assert arriving.brought == [(1, 3), (1, 4)]
    assert file.pread(end - begin, begin)
    assert len(arriving.brought) == 2


def test_nothing_is_brought_for_nothing(arriving: ArrivingModel, file: SeekableFile) -> None:
    assert file.read(0) == b""
    assert file.pread(10, file.size) == b""
    assert file.pread(10, file.size + 5) == b""
    file.seek(file.size + 5)
    assert file.read() == b""
    assert file.readinto(bytearray(3)) == 0
    assert arriving.demanded() == set()


def test_readinto_fills_any_buffer(arriving: ArrivingModel, file: SeekableFile, original: Path) -> None:
    arriving.bring_all()
    content = (original / SHARD).read_bytes()
    words = memoryview(bytearray(64)).cast("Q")
    file.seek(16)
    assert file.readinto(words) == 64
    assert bytes(words) == content[16:80]
    assert file.tell() == 80


def test_threads_read_side_by_side_without_moving_each_other(
    arriving: ArrivingModel, file: SeekableFile, original: Path
) -> None:
    arriving.bring_on_demand()
    content = (original / SHARD).read_bytes()
    offsets = range(0, len(content), 50_001)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda offset: file.pread(50_001, offset), offsets))
    assert b"".join(parts) == content
    assert file.tell() == 0


def test_a_read_blocks_until_the_bytes_are_there(arriving: ArrivingModel, file: SeekableFile, original: Path) -> None:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(file.read(8)))
    thread.start()
    thread.join(0.03)
    assert not found
    arriving.bring([(1, 0)])
    thread.join()
    assert found == [(original / SHARD).read_bytes()[:8]]


def test_a_failed_fetch_is_told_to_who_reads(stored: StoredModel, original: Path) -> None:
    with stored.reader() as reader, SeekableFile(reader, 1) as file:
        with ArrivingModel(stored, original) as arriving:
            arriving.writer.fail(NoSpace("the disk is full"))
        with pytest.raises(FetchFailed, match="the disk is full"):
            file.read(1)


@pytest.mark.parametrize("missing_bytes", [1, None])
def test_a_shard_that_was_cut_off_is_damage(reader: ModelReader, missing_bytes: int | None) -> None:
    path = reader.model.shard_path(1)
    if missing_bytes is None:
        path.unlink()
    else:
        os.truncate(path, reader.index.files[1].size_bytes - missing_bytes)
    with pytest.raises(StoreDamaged, match=SHARD):
        SeekableFile(reader, 1)


def test_a_closed_file_says_so(file: SeekableFile) -> None:
    file.close()
    file.close()
    for use in (file.read, file.tell, lambda: file.seek(0), lambda: file.pread(1, 0), file.__enter__):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_what_makes_no_sense_is_a_value_error(file: SeekableFile) -> None:
    for use in (lambda: file.seek(-1), lambda: file.seek(0, 9), lambda: file.pread(1, -1)):
        with pytest.raises(ValueError, match=r"negative|whence"):
            use()


def test_there_is_no_descriptor_to_map_or_read_past_the_wait(file: SeekableFile) -> None:
    with pytest.raises(io.UnsupportedOperation):
        file.fileno()


def test_a_local_model_is_read_where_it_is(original: Path, tmp_path: Path) -> None:
    index = indexed(original, Trust.NONE)
    with ModelStore(tmp_path / "cache").draft(index.reference, index.revision) as draft:
        stored = draft.publish(index, directory=original, trust=Trust.NONE)
    with stored.reader() as reader, SeekableFile(reader, 1) as file:
        assert file.read() == (original / SHARD).read_bytes()


def test_header_files_say_what_the_shards_say_and_hold_no_data(original: Path, tmp_path: Path) -> None:
    index = indexed(original)
    write_header_files(index, tmp_path / "headers")
    for shard in index.files:
        header = (tmp_path / "headers" / shard.path).read_bytes()
        size = int.from_bytes(header[:8], "little")
        assert len(header) == 8 + size
        entries = read_header(original / shard.path)
        assert json.loads(header[8:]) == {
            name: {"dtype": entry.dtype, "shape": [*entry.shape], "data_offsets": [entry.begin, entry.end]}
            for name, entry in entries.items()
        }


def test_nobody_takes_header_files_for_weights(original: Path, tmp_path: Path) -> None:
    index = indexed(original)
    write_header_files(index, tmp_path / "headers")
    for shard in index.files:
        with pytest.raises(UnsafeModel, match="cut off"):
            read_header(tmp_path / "headers" / shard.path)


def test_safetensors_does_not_either(original: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    index = indexed(original)
    write_header_files(index, tmp_path / "headers")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize((tmp_path / "headers" / SHARD).read_bytes())


def test_header_files_replace_nothing(original: Path) -> None:
    before = (original / SHARD).read_bytes()
    write_header_files(indexed(original), original)
    assert (original / SHARD).read_bytes() == before
