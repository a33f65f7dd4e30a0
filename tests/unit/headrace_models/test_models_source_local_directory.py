"""A local directory as a source: what is listed, what is refused, and that changed files give no bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import ModelNotFound, SourceChanged, SourceUnavailable, SourceUnusable, UnsafeModel
from headrace_models.reference import parse_reference
from headrace_models.sources import listing
from headrace_models.sources.base import Source, SourceFile, read_exactly
from headrace_models.sources.local_directory import LocalDirectory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "1_Pooling").mkdir(parents=True)
    (root / "1_Pooling" / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(bytes(range(200)))
    return root


def opened(root: Path) -> LocalDirectory:
    return LocalDirectory(parse_reference(str(root)))


def file_of(source: Source, path: str) -> SourceFile:
    return next(file for file in source.files if file.path == path)


def test_all_regular_files_are_listed_but_hidden_ones(root: Path) -> None:
    for hidden in (".git", ".cache/x"):
        (root / hidden).mkdir(parents=True)
        (root / hidden / "file").write_text("x")
    (root / ".gitattributes").write_text("x")
    (root / "empty").touch()
    (root / "link.json").symlink_to("1_Pooling/config.json")
    source: Source = opened(root)
    assert [(file.path, file.size_bytes) for file in source.files] == [
        ("1_Pooling/config.json", 2),
        ("empty", 0),
        ("link.json", 2),
        ("model.safetensors", 200),
    ]
    assert (source.proofs, source.pinned_index) == ((), None)
    source.close()


def test_ranges_are_read(root: Path) -> None:
    source = opened(root)
    weights = file_of(source, "model.safetensors")
    assert read_exactly(source, weights, 10, 20) == bytes(range(10, 20))
    assert read_exactly(source, weights, 0, 200) == bytes(range(200))
    assert read_exactly(source, weights, 7, 7) == b""


@given(begin=st.integers(0, 200), length=st.integers(0, 200), block=st.integers(1, 64))
def test_any_range_in_any_blocks_is_the_bytes_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, begin: int, length: int, block: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared"
    root.mkdir(exist_ok=True)
    if not (root / "w").exists():
        (root / "w").write_bytes(bytes(range(200)))
    source, end = opened(root), min(200, begin + length)
    with source.read(source.files[0], begin, end) as body:
        blocks = list(iter(lambda: body.read(block), b""))
    assert b"".join(blocks) == bytes(range(begin, end))
    assert all(len(data) <= block for data in blocks)


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(200))


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(200))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [rewrite, touch, replace, replace_by_link, replace_by_fifo, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_has_changed_since_the_listing_gives_no_bytes(root: Path, change: Callable[[Path], None]) -> None:
    source = opened(root)
    before = source.revision
    change(root / "model.safetensors")
    with pytest.raises(SourceChanged):
        read_exactly(source, file_of(source, "model.safetensors"), 0, 1)
    if change is not replace_by_link and change is not replace_by_fifo:
        assert opened(root).revision != before


@pytest.mark.parametrize("change", [rewrite, touch, lambda path: os.truncate(path, 50)])
def test_a_file_that_changes_while_it_is_read_gives_no_more_bytes(root: Path, change: Callable[[Path], None]) -> None:
    source = opened(root)
    with source.read(file_of(source, "model.safetensors"), 0, 200) as body:
        assert body.read(100) == bytes(range(100))
        change(root / "model.safetensors")
        with pytest.raises(SourceChanged):
            body.read(100)


def test_the_revision_stays_while_nothing_changes(root: Path) -> None:
    assert opened(root).revision == opened(root).revision


def test_a_closed_source_gives_nothing(root: Path) -> None:
    source = opened(root)
    weights = file_of(source, "model.safetensors")
    with source.read(weights, 0, 200) as body:
        source.close()
        with pytest.raises(SourceUnavailable):
            body.read(1)
    with pytest.raises(SourceUnavailable):
        read_exactly(source, weights, 0, 1)


def test_nothing_there_is_not_found(root: Path) -> None:
    with pytest.raises(ModelNotFound):
        opened(root / "absent")


def test_a_file_is_no_model(root: Path) -> None:
    with pytest.raises(UnsafeModel, match="is a file"):
        opened(root / "model.safetensors")


def outside(root: Path) -> None:
    (root / "x").symlink_to(root.parent)


def to_a_file_outside(root: Path) -> None:
    (root / "x").symlink_to("/etc/passwd")


def to_nothing(root: Path) -> None:
    (root / "x").symlink_to("nothing")


def fifo(root: Path) -> None:
    os.mkfifo(root / "x")


def backslash(root: Path) -> None:
    (root / "a\\b").touch()


def control(root: Path) -> None:
    (root / "a\nb").touch()


def not_utf8(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).touch()


@pytest.mark.parametrize("add", [outside, to_a_file_outside, to_nothing, fifo, backslash, control, not_utf8])
def test_a_directory_with_something_hostile_is_refused(root: Path, add: Callable[[Path], None]) -> None:
    add(root)
    with pytest.raises(UnsafeModel):
        opened(root)


def test_the_number_of_files_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 2)
    opened(root)
    (root / "third").touch()
    with pytest.raises(UnsafeModel, match="more than 2 files"):
        opened(root)


def test_a_path_that_leaves_the_directory_is_not_read(root: Path) -> None:
    (root.parent / "secret").write_text("x")
    with pytest.raises(UnsafeModel):
        read_exactly(opened(root), SourceFile("../secret", 1), 0, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_says_so(root: Path) -> None:
    (root / "1_Pooling").chmod(0)
    try:
        with pytest.raises(SourceUnusable, match="Permission denied"):
            opened(root)
    finally:
        (root / "1_Pooling").chmod(0o700)
