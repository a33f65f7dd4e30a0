"""A directory on a web server as a source. It cannot be listed, so the files that models usually have are asked for.

`config.json` must be there, and `model.safetensors` or its index. The index names the shards, `modules.json` the
folders of a sentence-transformers model. Other names may be absent: 404, or a web page in their place; any other answer
is an error. A file is pinned by its strong ETag, without one by Last-Modified (a second's resolution), without that by
its size alone. No digest is known before the bytes, so the trust is NONE; a seek index beside the model is not used,
since nothing binds it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from urllib.parse import quote

from headrace_models.errors import ModelError, ModelNotFound, SourceDenied, UnsafeModel
from headrace_models.reference import ModelReference
from headrace_models.sources.base import Body, SourceFile, SourceOptions, read_exactly
from headrace_models.sources.empty_body import EmptyBody
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.http_answers import Expected
from headrace_models.sources.http_transport import HttpTransport
from headrace_models.sources.listing import ListedSource
from headrace_models.sources.named_files import folders_of_modules, shards_of_index

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
OPTIONAL_NAMES = (
    "1_Pooling/config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    MODULES,
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
MAX_CONNECTIONS = 8
MAX_INDEX_BYTES = 100_000_000
MAX_MODULES_BYTES = 1 << 20


class WebDirectory(ListedSource):
    """See Source."""

    def __init__(self, directory: str, transport: HttpTransport, files: Iterable[SourceFile]) -> None:
        """`directory` is a URL with a slash at its end; `transport` is closed with this."""
        super().__init__(files, max_connections=MAX_CONNECTIONS)
        self._directory = directory
        self._transport = transport

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source."""
        if begin == end:
            yield EmptyBody(begin)
            return
        with self._transport.open_range(_url(self._directory, file.path), begin, end, _expected(file)) as body:
            yield body

    def close(self) -> None:
        """See Source."""
        self._transport.close()


def open_web_directory(reference: ModelReference, options: SourceOptions) -> WebDirectory:
    """Find out which files there are; raises ModelError."""
    directory = str(reference)
    transport = HttpTransport(options)
    with ExitStack() as on_failure:
        on_failure.callback(transport.close)
        source = WebDirectory(directory, transport, _find_files(directory, transport))
        on_failure.pop_all()
    return source


def _find_files(directory: str, transport: HttpTransport) -> Sequence[SourceFile]:
    probe = partial(_probe, directory, transport)
    config = probe(CONFIG)
    if config is None:
        raise ModelNotFound(f"{directory} has no {CONFIG}, so no model is there")
    with ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="probe") as threads:
        usual = _all(threads, probe, (INDEX, *OPTIONAL_NAMES))
        found = {file.path: file for file in (config, *usual)}
        first = WebDirectory(directory, transport, found.values())
        folders = folders_of_modules(_read(first, found[MODULES], MAX_MODULES_BYTES)) if MODULES in found else ()
        modules = [f"{folder}/{name}" for folder in folders for name in (CONFIG, SINGLE)]
        found |= {file.path: file for file in _all(threads, probe, set(modules) - set(found))}
        shards = shards_of_index(_read(first, found[INDEX], MAX_INDEX_BYTES)) if INDEX in found else (SINGLE,)
        found |= {file.path: file for file in _all(threads, probe, shards)}
    missing = next((shard for shard in shards if shard not in found), None)
    if missing is not None:
        raise ModelNotFound(f"{directory} has no {missing}" + ("" if INDEX in found else f" and no {INDEX}"))
    return tuple(found.values())


Probe = Callable[[str], SourceFile | None]


def _all(threads: ThreadPoolExecutor, probe: Probe, names: Iterable[str]) -> Sequence[SourceFile]:
    """Those of `names` that are there; after a failure the rest is not asked for."""
    asked = [threads.submit(probe, name) for name in names]
    try:
        return [file for future in asked if (file := future.result()) is not None]
    except ModelError:
        for future in asked:
            future.cancel()
        raise


def _probe(directory: str, transport: HttpTransport, name: str) -> SourceFile | None:
    try:
        description = transport.describe(_url(directory, checked_path(name)))
    except ModelNotFound:
        return None
    except SourceDenied as error:
        raise SourceDenied(f"{error}; object stores say so of what is not there, too: use s3:// for them") from error
    if description.is_page:
        return None
    return SourceFile(name, description.size_bytes, description.etag or description.last_modified)


def _read(source: WebDirectory, file: SourceFile, max_bytes: int) -> bytes:
    if file.size_bytes > max_bytes:
        raise UnsafeModel(f"{file.path} is larger than {max_bytes} bytes")
    return read_exactly(source, file, 0, file.size_bytes)


def _url(directory: str, path: str) -> str:
    return directory + quote(path)


def _expected(file: SourceFile) -> Expected:
    """A strong ETag begins with a quote, and no date does."""
    if file.validator is not None and file.validator.startswith('"'):
        return Expected(file.size_bytes, etag=file.validator)
    return Expected(file.size_bytes, last_modified=file.validator)
