"""Proofs that a seek index can carry: of what a source proves, that which speaks of shards.

A tar layer may hold shards and other files, and its digest is over all of them. The others are read and become part of
the proof as they are, if they are small; then the shards alone are enough to check it. Where they are not small the
proof is left out, which costs trust, and is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from headrace_models.checked_reads import read_range
from headrace_models.errors import UnsafeModel
from headrace_models.seek_index_checks import MAX_LITERAL_BYTES
from headrace_models.sources.base import FileRange, Literal, Proof, Source, SourceFile


def proofs_of_shards(source: Source, shards: Sequence[SourceFile]) -> tuple[tuple[Proof, ...], tuple[str, ...]]:
    """The proofs that speak of `shards`, and notes about those that had to be left out.

    Raises UnsafeModel for a proof of bytes that the source does not list, and what `Source.read` raises.
    """
    wanted = {shard.path for shard in shards}
    others = {file.path: file for file in source.files if file.path not in wanted}
    proofs, notes = [], []
    room = MAX_LITERAL_BYTES
    for proof in source.proofs:
        if not proof.paths & wanted:
            continue
        needed = _bytes_beside(proof, wanted)
        if needed > room:
            paths = ", ".join(sorted(proof.paths & wanted))
            notes.append(f"{paths}: cannot be checked, as {needed} bytes of other files are under the same digest")
            continue
        room -= needed
        proofs.append(_on_shards_alone(proof, source, others))
    return tuple(proofs), tuple(notes)


def _bytes_beside(proof: Proof, wanted: set[str]) -> int:
    """What the proof will hold itself: its literals, and the files that are no shards."""
    size = 0
    for part in proof.parts:
        if isinstance(part, Literal):
            size += len(part.data)
        elif part.path not in wanted:
            size += part.end - part.begin
    return size


def _on_shards_alone(proof: Proof, source: Source, others: Mapping[str, SourceFile]) -> Proof:
    parts: list[Literal | FileRange] = []
    for part in proof.parts:
        if isinstance(part, FileRange) and part.path in others:
            parts.append(Literal(_bytes_of(part, source, others[part.path])))
        else:
            parts.append(part)
    return replace(proof, parts=tuple(parts))


def _bytes_of(part: FileRange, source: Source, file: SourceFile) -> bytes:
    if not 0 <= part.begin <= part.end <= file.size_bytes:
        raise UnsafeModel(f"a digest is over bytes {part.begin} to {part.end} of {file.path}, which it does not have")
    return read_range(source, file, part.begin, part.end)
