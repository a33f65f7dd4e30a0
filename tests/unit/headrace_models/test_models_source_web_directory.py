"""An https directory as a source: which files are found without a listing, and how they are pinned."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace_models.errors import (
    ModelError,
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
    UnsafeModel,
)
from headrace_models.reference import ModelReference, parse_reference
from headrace_models.sources.base import Source, SourceFile, SourceOptions, read_exactly
from headrace_models.sources.named_files import folders_of_modules, shards_of_index
from headrace_models.sources.web_directory import WebDirectory, open_web_directory
from tests.fakes.origin_http import Ask, OriginHttp, Reply, origin_http, ranged, serve

SINGLE = {"/m/config.json": b"{}", "/m/model.safetensors": bytes(range(250)), "/m/tokenizer.json": b"{ }"}
INDEX = json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}).encode()
SHARDED = {
    "/m/config.json": b"{}",
    "/m/model.safetensors.index.json": INDEX,
    "/m/model-1.safetensors": b"one",
    "/m/model-2.safetensors": b"second",
    "/m/model.safetensors": b"not used",
}


def etags(files: Mapping[str, bytes]) -> Mapping[str, str]:
    return {path: f'"{len(data)}"' for path, data in files.items()}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def origin(stack: ExitStack) -> OriginHttp:
    return stack.enter_context(origin_http(serve(SINGLE, etags(SINGLE))))


@pytest.fixture
def options(tmp_path: Path) -> SourceOptions:
    return SourceOptions(tmp_path, stall_seconds=5.0)


def reference(origin: OriginHttp) -> ModelReference:
    return parse_reference(f"{origin.url}/m")


def opened(origin: OriginHttp, options: SourceOptions, stack: ExitStack) -> WebDirectory:
    source = open_web_directory(reference(origin), options)
    stack.callback(source.close)
    return source


def paths(source: Source) -> list[str]:
    return [file.path for file in source.files]


def test_the_usual_files_are_found_and_pinned_by_their_etags(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack
) -> None:
    source: Source = opened(origin, options, stack)
    assert source.files == (
        SourceFile("config.json", 2, '"2"'),
        SourceFile("model.safetensors", 250, '"250"'),
        SourceFile("tokenizer.json", 3, '"3"'),
    )
    assert (source.proofs, source.pinned_index) == ((), None)
    assert read_exactly(source, source.files[1], 100, 110) == bytes(range(100, 110))
    assert read_exactly(source, source.files[1], 5, 5) == b""


def test_an_index_names_the_shards_and_the_single_file_is_not_used(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack
) -> None:
    origin.answer = serve(SHARDED)
    assert paths(opened(origin, options, stack)) == [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]


def test_modules_name_folders(origin: OriginHttp, options: SourceOptions, stack: ExitStack) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense/"}, {"path": "3_Normalize"}]
    extra = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "sentence_bert_config.json"]
    files = {**SINGLE, "/m/modules.json": json.dumps(modules).encode(), **{f"/m/{name}": b"{}" for name in extra}}
    origin.answer = serve(files)
    assert paths(opened(origin, options, stack)) == sorted(path.removeprefix("/m/") for path in files)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_without_what_a_model_needs_is_none(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack, missing: str
) -> None:
    origin.answer = serve({path: data for path, data in SINGLE.items() if path != f"/m/{missing}"})
    with pytest.raises(ModelNotFound, match=missing):
        opened(origin, options, stack)


def test_a_missing_shard_is_named(origin: OriginHttp, options: SourceOptions, stack: ExitStack) -> None:
    origin.answer = serve({path: data for path, data in SHARDED.items() if path != "/m/model-2.safetensors"})
    with pytest.raises(ModelNotFound, match=r"has no model-2\.safetensors$"):
        opened(origin, options, stack)


def test_a_web_page_in_place_of_a_file_is_no_file(origin: OriginHttp, options: SourceOptions, stack: ExitStack) -> None:
    files = serve(SINGLE)

    def answer(ask: Ask) -> Reply:
        return files(ask) if ask.path in SINGLE else Reply(200, b"<html>", {"Content-Type": "text/html"})

    origin.answer = answer
    assert paths(opened(origin, options, stack)) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("status", "error"), [(500, SourceUnavailable), (403, SourceDenied), (401, SourceDenied), (418, SourceUnusable)]
)
def test_any_answer_but_not_found_to_an_optional_name_is_an_error(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack, status: int, error: type[ModelError]
) -> None:
    files = serve(SINGLE)
    origin.answer = lambda ask: Reply(status) if ask.path == "/m/vocab.txt" else files(ask)
    with pytest.raises(error):
        opened(origin, options, stack)


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_servers_that_ignore_ranges_are_used(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack, ignores_ranges: bool
) -> None:
    files = serve(SHARDED)

    def answer(ask: Ask) -> Reply:
        if not ignores_ranges:
            return files(ask)
        return Reply(200, SHARDED[ask.path]) if ask.path in SHARDED else Reply(404)

    origin.answer = answer
    source = opened(origin, options, stack)
    assert [read_exactly(source, file, 1, 2) for file in source.files] == [b"}", b"n", b"e", INDEX[1:2]]


def test_without_an_etag_the_time_of_change_pins(origin: OriginHttp, options: SourceOptions, stack: ExitStack) -> None:
    modified = ["Tue, 01 Jul 2025 10:00:00 GMT"]

    def answer(ask: Ask) -> Reply:
        headers = {"ETag": 'W/"weak"', "Last-Modified": modified[0]}
        return ranged(ask, SINGLE[ask.path], headers) if ask.path in SINGLE else Reply(404)

    origin.answer = answer
    source = opened(origin, options, stack)
    assert {file.validator for file in source.files} == set(modified)
    read_exactly(source, source.files[1], 0, 1)
    modified[0] = "Tue, 01 Jul 2025 10:00:01 GMT"
    with pytest.raises(SourceChanged):
        read_exactly(source, source.files[1], 0, 1)


def test_without_any_validator_the_size_is_compared(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack
) -> None:
    origin.answer = serve(SINGLE)
    source = opened(origin, options, stack)
    assert {file.validator for file in source.files} == {None}
    origin.answer = serve({path: data + b"x" for path, data in SINGLE.items()})
    with pytest.raises(SourceChanged):
        read_exactly(source, source.files[1], 0, 1)


def test_the_revision_changes_with_sizes_and_etags_only(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack
) -> None:
    revisions = [opened(origin, options, stack).revision, opened(origin, options, stack).revision]
    origin.answer = serve(SINGLE, {**etags(SINGLE), "/m/tokenizer.json": '"other"'})
    revisions.append(opened(origin, options, stack).revision)
    origin.answer = serve({**SINGLE, "/m/vocab.txt": b"x"}, etags(SINGLE))
    revisions.append(opened(origin, options, stack).revision)
    assert len(set(revisions)) == 3
    assert revisions[0] == revisions[1]


def test_an_index_that_is_too_large_is_not_read(
    origin: OriginHttp, options: SourceOptions, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_models.sources.web_directory.MAX_INDEX_BYTES", len(INDEX) - 1)
    origin.answer = serve(SHARDED)
    with pytest.raises(UnsafeModel, match="larger"):
        opened(origin, options, stack)
    assert {ask.headers["range"] for ask in origin.asked} == {"bytes=0-0"}


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "a\x00.safetensors", "a.bin"]
    + ["", "..", "a\n.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"],
)
def test_an_index_cannot_name_what_is_not_in_the_directory(shard: str) -> None:
    with pytest.raises(UnsafeModel):
        shards_of_index(json.dumps({"weight_map": {"a": shard}}).encode())


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b'{"weight_map": ["a"]}', b"[" * 10_000],
)
def test_an_index_that_maps_nothing_is_refused(index: bytes) -> None:
    with pytest.raises(UnsafeModel):
        shards_of_index(index)


def test_folders_of_modules_stay_in_the_directory() -> None:
    assert folders_of_modules(b'[{"path": "a"}, {"path": ["b"]}, {"path": "a/"}, {"path": ""}, 3, {}]') == ("a",)
    for path in ("../a", "/a", "a//b", "a\\b", "."):
        with pytest.raises(UnsafeModel):
            folders_of_modules(json.dumps([{"path": path}]).encode())
