"""One push: every byte is read once for its digests, what the registry lacks is sent, and the manifest comes last.

So a push that breaks leaves blobs that no name leads to, which the registry collects, and never half a model under a
name; the next push finds them there and goes on. Threads hash and send; the caller's thread reports. An interrupt
leaves them behind, since one may wait for an answer as long as the limits of the source options say. Files are
compared with their pins whenever they are read, so one that changes under way ends the push.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from headrace_models.digest import Sha256
from headrace_models.errors import SourceUnavailable
from headrace_models.fetch.patience import Patience, retrying
from headrace_models.locations import OciLocation
from headrace_models.push.artifact import Layer, config_document, manifest_document
from headrace_models.push.blob_upload import PIECE_BYTES, Blob, BlobUpload, Outcome, UploadSettings
from headrace_models.push.contents import BytesContent, ModelContents, PushedFile, Role
from headrace_models.push.formats import ArtifactFormat
from headrace_models.push.hashing import Hashed, hash_file, written_index
from headrace_models.push.registry_writer import RegistryWriter
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.oci_artifact import SEEK_INDEX_PATH
from headrace_models.trust import Trust

NUM_CONNECTIONS = 4
NUM_HASHING = 4
TICK_SECONDS = 0.1

T = TypeVar("T")
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to push. `source_options` say how registries are spoken to."""

    source_options: SourceOptions
    form: ArtifactFormat = ArtifactFormat.MODELPACK
    num_connections: int = NUM_CONNECTIONS
    patience_seconds: float = 300.0
    piece_bytes: int = PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who is told. `on_hashed` and `on_sent` get bytes that are done, and all of them; on the caller's thread."""

    on_hashed: OnProgress = lambda _done, _total: None
    on_sent: OnProgress = lambda _done, _total: None


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model that is in the registry. `trust` is what the next node can check its bytes by; `index_bytes` 0: there is
    no seek index. `blob_bytes` are all bytes of layers and config by how they came there."""

    digest: Sha256
    trust: Trust
    num_files: int
    total_bytes: int
    index_bytes: int
    blob_bytes: Mapping[Outcome, int]
    seconds: float


def push_model(
    contents: ModelContents, destination: OciLocation, options: PushOptions, report: Reporter | None = None
) -> Pushed:
    """Push a model under the tag that `destination` names. Raises ModelError."""
    return _Push(contents, destination, options, report or Reporter()).run()


class _Push:
    """What the steps of one push share."""

    def __init__(
        self, contents: ModelContents, destination: OciLocation, options: PushOptions, report: Reporter
    ) -> None:
        self._contents, self._destination, self._options, self._report = contents, destination, options, report
        self._stop = threading.Event()
        self._count = _Count()

    def run(self) -> Pushed:
        began = time.monotonic()
        files, hashed = self._hashed()
        layers = [
            Layer(file.path, file.role, hashed[file.path].digest, file.content.size_bytes)
            for file in sorted(files, key=lambda file: list(Role).index(file.role))
        ]
        form = self._options.form
        config = config_document(form, self._contents.facts, layers)
        config_digest = _digest_of(config)
        blobs = {hashed[file.path].digest: Blob(file.path, hashed[file.path].digest, file.content) for file in files}
        blobs[config_digest] = Blob("the artifact's config", config_digest, BytesContent(config))
        manifest = manifest_document(form, config, config_digest, layers)
        blob_bytes = self._sent(list(blobs.values()), manifest)
        index_bytes = sum(layer.size_bytes for layer in layers if layer.role is Role.INDEX)
        return Pushed(
            _digest_of(manifest),
            Trust.CHUNK if index_bytes else Trust.FILE,
            len(self._contents.files),
            sum(file.content.size_bytes for file in self._contents.files),
            index_bytes,
            blob_bytes,
            time.monotonic() - began,
        )

    def _hashed(self) -> tuple[Sequence[PushedFile], Mapping[str, Hashed]]:
        """All files with their digests, the seek index among them."""
        files, index = self._contents.files, self._contents.index
        layouts = {} if index is None else dict(zip((file.path for file in index.files), index.layouts, strict=True))
        total = sum(file.content.size_bytes for file in files)
        found = self._together(
            [partial(hash_file, file, layouts.get(file.path), self._counted) for file in files],
            lambda: self._report.on_hashed(self._count.value, total),
            num_threads=NUM_HASHING,
        )
        hashed = {file.path: one for file, one in zip(files, found, strict=True)}
        if index is None:
            return files, hashed
        data = written_index(index, files, hashed)
        file = PushedFile(SEEK_INDEX_PATH, Role.INDEX, BytesContent(data))
        return (*files, file), {**hashed, file.path: Hashed(_digest_of(data))}

    def _counted(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise SourceUnavailable("the push was stopped")
        self._count.add(num_bytes)

    def _sent(self, blobs: Sequence[Blob], manifest: bytes) -> Mapping[Outcome, int]:
        self._count = _Count()
        settings = UploadSettings(
            Patience(self._options.patience_seconds), self._stop, self._count.add, self._options.piece_bytes
        )
        total = sum(blob.content.size_bytes for blob in blobs)
        registry = RegistryWriter(self._destination, self._options.source_options, mount_from=self._mount_from())
        try:
            outcomes = self._together(
                [partial(self._send_blob, registry, blob, settings) for blob in blobs],
                lambda: self._report.on_sent(self._count.value, total),
                num_threads=self._options.num_connections,
            )
            self._name(registry, manifest, settings)
        finally:
            registry.close()
        blob_bytes: Counter[Outcome] = Counter()
        for blob, outcome in zip(blobs, outcomes, strict=True):
            blob_bytes[outcome] += blob.content.size_bytes
        return blob_bytes

    def _send_blob(self, registry: RegistryWriter, blob: Blob, settings: UploadSettings) -> Outcome:
        outcome = BlobUpload(registry, blob, settings).run()
        if outcome is not Outcome.UPLOADED:
            self._count.add(blob.content.size_bytes)
        return outcome

    def _name(self, registry: RegistryWriter, manifest: bytes, settings: UploadSettings) -> None:
        digest, tag = _digest_of(manifest), str(self._destination.tag)
        retrying(lambda: registry.put_manifest(tag, manifest, digest), settings.patience, wait=self._stop.wait)

    def _mount_from(self) -> str | None:
        """The repository of the same registry that the model came from, if it is another one."""
        registry, repository = self._contents.fetched_from or ("", "")
        is_elsewhere = registry == self._destination.registry and repository != self._destination.repository
        return repository if is_elsewhere else None

    def _together(self, jobs: Sequence[Callable[[], T]], on_tick: Callable[[], None], *, num_threads: int) -> list[T]:
        """The results of all jobs, in their order. The first error stops the others and waits for them; an interrupt
        does not wait."""
        threads = ThreadPoolExecutor(num_threads, thread_name_prefix="push")
        futures = [threads.submit(job) for job in jobs]
        is_patient = True
        try:
            _wait_for(futures, on_tick)
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            is_patient = False
            raise
        finally:
            if not all(future.done() for future in futures):
                self._stop.set()
            threads.shutdown(wait=is_patient, cancel_futures=True)


def _wait_for(futures: "Sequence[Future[T]]", on_tick: Callable[[], None]) -> None:
    """Raises what the first job that failed raised."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        on_tick()


class _Count:
    """Bytes that many threads add to."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.value += num_bytes


def _digest_of(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())
