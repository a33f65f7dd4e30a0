"""The written form of a seek index: canonical JSON (sorted keys, no spaces), so that equal indexes are equal bytes.

What is read is hostile: `decode` checks the form, `seek_index_checks` what the numbers say. Digests of chunks are
packed, 32 bytes each, as base64. An index that goes with its weights may hold the shards' headers too, so that whoever
compares it with them need not fetch them; readers of the index alone pass them over.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from headrace_models import strict_json
from headrace_models.chunk_layout import LAYOUT
from headrace_models.digest import Sha256
from headrace_models.errors import UnsafeModel
from headrace_models.seek_index import MAX_INDEX_BYTES, IndexedFile, IndexedTensor, SeekIndex
from headrace_models.seek_index_checks import check
from headrace_models.sources.base import FileRange, Literal, Proof

FORMAT = 1
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class WrittenIndex:
    """What was read: an index, and the headers of its shards, by path, where they stand beside it."""

    index: SeekIndex
    headers: Mapping[str, bytes]


def encode(index: SeekIndex, headers: Mapping[str, bytes] | None = None) -> bytes:
    """The canonical form; with the shards' `headers`, by path, where they are given."""
    document: dict[str, object] = {
        "format": FORMAT,
        "layout": LAYOUT,
        "reference": index.reference,
        "revision": index.revision,
        "architecture": index.architecture,
        "groups": list(index.groups),
        "files": [_file_to_object(file) for file in index.files],
        "tensors": [[t.name, t.file, t.begin, t.end, t.dtype, list(t.shape), t.group] for t in index.tensors],
        "proofs": [_proof_to_object(proof) for proof in index.proofs],
    }
    if headers is not None:
        document["headers"] = {path: base64.b64encode(header).decode() for path, header in headers.items()}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> SeekIndex:
    """Read an index; raises UnsafeModel unless it is one of this format and contradicts itself nowhere."""
    written = decode_known(data)
    if written is None:
        raise UnsafeModel(f"the seek index is not one of format {FORMAT} with the layout {LAYOUT}")
    return written.index


def decode_known(data: bytes) -> WrittenIndex | None:
    """As `decode`, but None for what may be an index of another version: another format or layout."""
    if len(data) > MAX_INDEX_BYTES:
        raise UnsafeModel(f"the seek index is larger than {MAX_INDEX_BYTES} bytes")
    try:
        document = strict_json.parse(data)
        if not _is_known(document):
            return None
        index, headers = _index(document), _headers(document)
    except ValueError as error:
        raise UnsafeModel(f"the seek index cannot be used: {error}") from error
    check(index)
    return WrittenIndex(index, headers)


def _headers(document: object) -> Mapping[str, bytes]:
    match document:
        case {"headers": dict(headers)} if all(isinstance(text, str) for text in headers.values()):
            return {path: _from_base64(text) for path, text in headers.items()}
        case {"headers": _}:
            raise ValueError("the headers of its shards are malformed")
        case _:
            return {}


def _is_known(document: object) -> bool:
    match document:
        case {"format": format_, "layout": str(layout)} if type(format_) is int:
            return format_ == FORMAT and layout == LAYOUT
        case _:
            raise ValueError("it names no format and no layout")


def _index(document: object) -> SeekIndex:
    match document:
        case {
            "reference": str(reference),
            "revision": str(revision),
            "architecture": None | str() as architecture,
            "groups": list(groups),
            "files": list(files),
            "tensors": list(tensors),
            "proofs": list(proofs),
        } if all(isinstance(group, str) for group in groups):
            return SeekIndex(
                reference,
                revision,
                architecture,
                tuple(groups),
                tuple(map(_file, files)),
                tuple(map(_tensor, tensors)),
                tuple(map(_proof, proofs)),
            )
        case _:
            raise ValueError("a part is missing or of the wrong type")


def _file_to_object(file: IndexedFile) -> dict[str, object]:
    digests = file.chunk_digests
    packed = None if digests is None else b"".join(bytes.fromhex(digest.hex) for digest in digests)
    return {
        "path": file.path,
        "size_bytes": file.size_bytes,
        "data_begin": file.data_begin,
        "validator": file.validator,
        "digest": None if file.digest is None else str(file.digest),
        "chunk_digests": None if packed is None else base64.b64encode(packed).decode(),
    }


def _file(value: object) -> IndexedFile:
    match value:
        case {
            "path": str(path),
            "size_bytes": int(size_bytes),
            "data_begin": int(data_begin),
            "validator": None | str() as validator,
            "digest": None | str() as digest,
            "chunk_digests": None | str() as packed,
        } if _are_numbers(size_bytes, data_begin):
            known = None if digest is None else Sha256.parse(digest)
            return IndexedFile(path, size_bytes, data_begin, validator, known, _digests(packed))
        case _:
            raise ValueError("a file is malformed")


def _digests(packed: str | None) -> tuple[Sha256, ...] | None:
    if packed is None:
        return None
    data = _from_base64(packed)
    if len(data) % DIGEST_BYTES:
        raise ValueError("chunk digests are cut off")
    return tuple(Sha256(data[at : at + DIGEST_BYTES].hex()) for at in range(0, len(data), DIGEST_BYTES))


def _tensor(value: object) -> IndexedTensor:
    match value:
        case [str(name), int(file), int(begin), int(end), str(dtype), list(shape), int(group)] if _are_numbers(
            file, begin, end, group, *shape
        ):
            return IndexedTensor(name, file, begin, end, dtype, tuple(shape), group)
        case _:
            raise ValueError("a tensor is malformed")


def _proof_to_object(proof: Proof) -> dict[str, object]:
    parts: list[object] = []
    for part in proof.parts:
        if isinstance(part, Literal):
            parts.append(base64.b64encode(part.data).decode())
        else:
            parts.append([part.path, part.begin, part.end])
    return {"digest": str(proof.digest), "parts": parts}


def _proof(value: object) -> Proof:
    match value:
        case {"digest": str(digest), "parts": list(parts)}:
            return Proof(Sha256.parse(digest), tuple(map(_part, parts)))
        case _:
            raise ValueError("a proof is malformed")


def _part(value: object) -> Literal | FileRange:
    match value:
        case str(encoded):
            return Literal(_from_base64(encoded))
        case [str(path), int(begin), int(end)] if _are_numbers(begin, end):
            return FileRange(path, begin, end)
        case _:
            raise ValueError("a part of a proof is malformed")


def _from_base64(text: str) -> bytes:
    """Strict: `validate` alone lets bits pass that are in no byte, so that two texts would mean one thing."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 is not canonical")
    return data


def _are_numbers(*values: object) -> bool:
    """Integers that are not booleans: `case int()` takes both."""
    return all(type(value) is int for value in values)
