"""A model in an OCI registry as a source.

A raw layer is a file. In an uncompressed tar the files are ranges of the layer, found by reading headers when the
source is opened; the digest of the layer then vouches for them together. Compressed layers, and tars of registries
that ignore ranges, come whole into the spool first, which takes as long as it takes: pack models without compression.
The revision is the manifest's digest, and everything follows from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from headrace_models.digest import Sha256
from headrace_models.errors import ModelNotFound, SourceChanged, SourceUnavailable
from headrace_models.reference import ModelReference, oci_location
from headrace_models.sources.base import Body, Proof, SourceFile, SourceOptions, proof_of
from headrace_models.sources.empty_body import EmptyBody
from headrace_models.sources.layer_spool import LayerSpool, SpooledFile
from headrace_models.sources.listing import ListedSource
from headrace_models.sources.oci_artifact import Artifact, ModelLayer, Packing, read_artifact
from headrace_models.sources.oci_registry import Registry
from headrace_models.sources.tar_layer import walk_tar
from headrace_models.sources.windows import FileBody, WindowBody


@dataclass(frozen=True, slots=True)
class _BlobRange:
    """Where a file's bytes are in a blob."""

    layer: ModelLayer
    begin: int
    end: int


_Place = _BlobRange | SpooledFile


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, where it is, and what vouches for it alone."""

    file: SourceFile
    place: _Place


class _RangesIgnored(Exception):
    """The registry gives whole blobs only."""


def open_oci(reference: ModelReference, options: SourceOptions) -> "OciSource":
    """Ask the registry what the model is. Blocks on the network, and for compressed layers until they have come.

    Raises ModelError; a layer whose fetching broke off goes on from there when the source is opened again.
    """
    registry = Registry(oci_location(reference), options)
    spool = LayerSpool(options.spool, on_kept=options.on_kept)
    try:
        manifest, digest = registry.manifest()
        return _Opening(registry, spool).source(read_artifact(manifest), digest)
    except BaseException as error:
        registry.close()
        if not isinstance(error, SourceUnavailable):
            spool.close()
        raise


class OciSource(ListedSource):
    """See `Source`; made by `open_oci`."""

    def __init__(
        self,
        revision: Sha256,
        found: Sequence[_Found],
        proofs: Sequence[Proof],
        *,
        pinned_index: str | None,
        registry: Registry,
        spool: LayerSpool,
    ) -> None:
        super().__init__(
            (entry.file for entry in found),
            revision=str(revision),
            proofs=proofs,
            pinned_index=pinned_index,
        )
        self._found: Mapping[str, _Found] = {entry.file.path: entry for entry in found}
        self._registry, self._spool = registry, spool

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source."""
        place = self._place(file)
        if begin == end:
            yield EmptyBody(begin)
        elif isinstance(place, SpooledFile):
            body = FileBody(place.archive, place.member.begin, begin, end)
            try:
                yield body
            finally:
                body.close()
        else:
            first, last = place.begin + begin, place.begin + end
            with self._registry.read_blob(place.layer.digest, place.layer.size_bytes, first, last) as whole:
                yield WindowBody(whole, place.begin, place.end)

    def close(self) -> None:
        """See Source."""
        self._registry.close()
        self._spool.close()

    def _place(self, file: SourceFile) -> _Place:
        found = self._found.get(file.path)
        if found is None:
            raise ModelNotFound(f"{file.path} is not in the model")
        if found.file != file:
            raise SourceChanged(f"{file.path} is not the file that it was")
        return found.place


class _Opening:
    """Finds the files in the layers of an artifact."""

    def __init__(self, registry: Registry, spool: LayerSpool) -> None:
        self._registry, self._spool = registry, spool
        self._found: list[_Found] = []
        self._proofs: list[Proof] = []

    def source(self, artifact: Artifact, revision: Sha256) -> OciSource:
        """What is read in ranges comes first, so that a model that is refused is refused before much has come; what
        comes whole is unpacked when all of it is there, so that a broken connection costs no unpacking."""
        whole = [layer for layer in artifact.layers if not self._is_read_in_ranges(layer)]
        for layer in whole:
            self._spool.fetch(layer, partial(_read_layer, self._registry, layer))
        for layer in whole:
            for spooled in self._spool.unpack(layer):
                member = spooled.member
                size_bytes = member.end - member.begin
                self._add(SourceFile(member.path, size_bytes, str(spooled.digest), spooled.digest), spooled)
        return OciSource(
            revision,
            self._found,
            self._proofs,
            pinned_index=artifact.pinned_index,
            registry=self._registry,
            spool=self._spool,
        )

    def _is_read_in_ranges(self, layer: ModelLayer) -> bool:
        match layer.packing:
            case Packing.RAW:
                file = SourceFile(layer.path, layer.size_bytes, str(layer.digest), layer.digest)
                self._add(file, _BlobRange(layer, 0, layer.size_bytes))
                return True
            case Packing.TAR:
                return self._is_walked(layer)
            case Packing.TAR_GZIP | Packing.TAR_ZSTD:
                return False
            case _:
                assert_never(layer.packing)

    def _is_walked(self, layer: ModelLayer) -> bool:
        try:
            layout = walk_tar(partial(_read_range, self._registry, layer), layer.size_bytes)
        except _RangesIgnored:
            return False
        if layout.members:
            self._proofs.append(Proof(layer.digest, layout.parts))
        for member in layout.members:
            # The layer's digest and the place in it say what the bytes are.
            validator = f"{layer.digest}:{member.begin}"
            file = SourceFile(member.path, member.end - member.begin, validator)
            self._add(file, _BlobRange(layer, member.begin, member.end))
        return True

    def _add(self, file: SourceFile, place: _Place) -> None:
        self._found.append(_Found(file, place))
        if proof := proof_of(file):
            self._proofs.append(proof)


def _read_layer(registry: Registry, layer: ModelLayer, begin: int, end: int) -> AbstractContextManager[Body]:
    return registry.read_blob(layer.digest, layer.size_bytes, begin, end)


def _read_range(registry: Registry, layer: ModelLayer, begin: int, end: int) -> bytes:
    """The bytes; raises _RangesIgnored where the registry would give the whole layer again and again."""
    data = bytearray()
    with _read_layer(registry, layer, begin, end) as body:
        if (body.begin, body.end) != (begin, end):
            raise _RangesIgnored
        while len(data) < end - begin:
            block = body.read(end - begin - len(data))
            if not block:
                raise SourceUnavailable(f"the answer ended {end - begin - len(data)} bytes early")
            data += block
    return bytes(data)
