"""`headrace index show`: what a model consists of, in the order in which it is used.

From the cache where the model is there; else from its headers, which are a few hundred kilobytes, read where they are.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from headrace_models import ModelNotFound, ModelReference, Scheme, Trust, parse_reference
from headrace_models.checked_reads import read_file
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.session import source_options
from headrace_models.fetch.spool import spool_directory
from headrace_models.index_building import build_index, index_of_directory
from headrace_models.inspection import read_json_object
from headrace_models.model_files import MAX_CONFIG_BYTES, choose_files
from headrace_models.seek_index import IndexedTensor, SeekIndex
from headrace_models.sources.opening import open_source
from headrace_models.store.store_status import HEADERS
from headrace_server.catalog import fetch_request
from headrace_server.cli.embedded_directories import prepared_directory
from headrace_server.cli.model_names import key_named, open_store, settings_named
from headrace_server.cli.progress_display import size_text
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings


@dataclass(frozen=True, slots=True)
class GroupShape:
    """A group of tensors: how many, how many bytes, in how many chunks."""

    name: str
    num_tensors: int
    size_bytes: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class FoundIndex:
    """An index, and how far the bytes are checked that it is of."""

    index: SeekIndex
    trust: Trust


def show_index(name: str, config: Path | None, *, as_json: bool, tensors: bool) -> None:
    """Print the index of a model.

    Raises:
        UsageError: the name stands for nothing, or for several models.
        ModelError: the source does not give it.
    """
    found = find_index(name, load_settings(config=config))
    if as_json:
        typer.echo(json.dumps(_document(found, tensors=tensors), indent=2))
        return
    for line in _lines(found, tensors=tensors):
        typer.echo(line)


def find_index(name: str, settings: Settings) -> FoundIndex:
    """The index of the model in the cache, else of the model at its source. Raises UsageError, ModelError."""
    store = open_store(settings)
    if store is not None:
        try:
            model = store.open_key(key_named(name, settings, store))
        except ModelNotFound:
            pass  # then it is looked at where it is
        else:
            return FoundIndex(model.index, model.status().trust if model.is_local else model.index.trust)
    return _at_source(fetch_request(settings_named(name, settings), settings.cache))


def _at_source(request: FetchRequest) -> FoundIndex:
    reference = parse_reference(request.reference)
    match reference.scheme:
        case Scheme.FILE:
            return FoundIndex(_index_of_directory(Path(reference.location), request.reference), Trust.NONE)
        case Scheme.EMBEDDED:
            directory = prepared_directory(request.reference, request.cache_dir)
            if directory is None:
                raise ModelNotFound(f"{reference} has not been prepared yet: headrace pull {reference}")
            return FoundIndex(_index_of_directory(directory, request.reference), Trust.FILE)
        case _:
            index = _index_of_remote(reference, request)
            return FoundIndex(index, index.trust)


def _index_of_directory(directory: Path, reference: str) -> SeekIndex:
    try:
        return index_of_directory(directory, reference, digests=False)
    except OSError as error:
        raise ModelNotFound(f"{directory} cannot be read: {error.strerror or error}") from error


def _index_of_remote(reference: ModelReference, request: FetchRequest) -> SeekIndex:
    with spool_directory(request.cache_dir) as spool:
        source = open_source(reference, source_options(request, spool))
        try:
            files = choose_files(source.files)
            config = spool / files.config.path
            config.write_bytes(read_file(source, files.config, max_bytes=MAX_CONFIG_BYTES))
            return build_index(source, request.reference, files, read_json_object(config)).index
        finally:
            source.close()


def groups_of(index: SeekIndex) -> Iterator[GroupShape]:
    """The shards' headers first, then the groups in execution order."""
    chunks = Counter(layout.group_of(chunk) for layout in index.layouts for chunk in range(len(layout)))
    num_tensors = Counter(tensor.group for tensor in index.tensors)
    sizes: Counter[int] = Counter()
    for tensor in index.tensors:
        sizes[tensor.group] += tensor.size_bytes
    yield GroupShape(HEADERS, 0, sum(file.data_begin for file in index.files), chunks[None])
    for number, name in enumerate(index.groups):
        yield GroupShape(name, num_tensors[number], sizes[number], chunks[number])


def _lines(found: FoundIndex, *, tensors: bool) -> Iterator[str]:
    index = found.index
    num_chunks = sum(map(len, index.layouts))
    yield f"reference     {index.reference}"
    yield f"revision      {index.revision}"
    yield f"architecture  {index.architecture or '-'}"
    yield f"trust         {found.trust.value}"
    yield f"weights       {size_text(index.weight_bytes)} in {len(index.files)} shard(s), {num_chunks} chunks"
    yield ""
    yield f"{'GROUP':<16} {'TENSORS':>8} {'SIZE':>10} {'CHUNKS':>7}"
    for group in groups_of(index):
        yield f"{group.name:<16} {group.num_tensors:>8} {size_text(group.size_bytes):>10} {group.num_chunks:>7}"
    if tensors:
        yield ""
        for tensor in index.tensors:
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            path = index.files[tensor.file].path
            yield f"{tensor.name}  {tensor.dtype} {shape}  {path} {tensor.begin}–{tensor.end}"


def _document(found: FoundIndex, *, tensors: bool) -> dict[str, object]:
    index = found.index
    document: dict[str, object] = {
        "reference": index.reference,
        "revision": index.revision,
        "architecture": index.architecture,
        "trust": found.trust.value,
        "weight_bytes": index.weight_bytes,
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in index.files],
        "groups": [
            {
                "name": group.name,
                "num_tensors": group.num_tensors,
                "size_bytes": group.size_bytes,
                "num_chunks": group.num_chunks,
            }
            for group in groups_of(index)
        ],
    }
    return {**document, "tensors": [_tensor(index, tensor) for tensor in index.tensors]} if tensors else document


def _tensor(index: SeekIndex, tensor: IndexedTensor) -> dict[str, object]:
    return {
        "name": tensor.name,
        "group": index.groups[tensor.group],
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "path": index.files[tensor.file].path,
        "begin": tensor.begin,
        "end": tensor.end,
    }
