"""The small files of a model (config, tokenizer, chat template): fetched whole, checked, before anything else.

They go straight into a draft, in parallel, and are checked against their digests where the source states them.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from headrace_models.digest import sha256_of_file
from headrace_models.errors import DigestMismatch
from headrace_models.fetch.patience import Patience, retrying
from headrace_models.sources.base import Source, SourceFile

READ_BYTES = 1 << 20
MAX_TRIES = 3


def fetch_skeleton(
    source: Source, files: tuple[SourceFile, ...], directory: Path, patience: Patience, stop: threading.Event
) -> None:
    """Write `files` below `directory`. Raises ModelError; OSError when they cannot be written."""
    with ThreadPoolExecutor(min(source.max_connections, max(1, len(files)))) as threads:
        fetches = [threads.submit(_fetch, source, file, directory / file.path, patience, stop) for file in files]
        try:
            for fetch in fetches:
                fetch.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(source: Source, file: SourceFile, target: Path, patience: Patience, stop: threading.Event) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(MAX_TRIES):
        retrying(partial(_read_whole, source, file, target, patience), patience, wait=stop.wait)
        if file.digest is None or sha256_of_file(target) == file.digest:
            return
        if attempt + 1 == MAX_TRIES:
            raise DigestMismatch(f"{file.path} came {MAX_TRIES} times with another digest than {file.digest}")


def _read_whole(source: Source, file: SourceFile, target: Path, patience: Patience) -> None:
    with target.open("wb") as output, source.read(file, 0, file.size_bytes) as body:
        while data := body.read(READ_BYTES):
            patience.progress()
            output.write(data)
