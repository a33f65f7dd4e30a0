"""What is done about marks that cannot be believed: after a crash of the machine, or when bytes prove wrong.

The caller holds `fetch.lock`. Everything goes from worse to better in one order: first `status.json` says, on disk,
that nothing is to be believed (`doubt`); then files get their sizes and marks are cleared; last `status.json` says that
they hold (`believe`). A crash anywhere in between leaves a model that the next writer looks through again.

Power loss. A sealed model was flushed before it was called sealed. Of an unsealed one any block of any file may be old,
new or zeros: a mark whose bytes or whose recorded digest did not reach the disk fails SHA-256 here and is cleared; a
mark that did not reach it is fetched again. Digests recorded before the first seal were flushed with it and are not
rewritten, so they bind for good. What is recorded of a chunk without a mark says nothing before that: the next one to
write the chunk replaces it.
"""

from collections.abc import Iterable
from dataclasses import replace

from headrace_models.store.boot import current_boot_id
from headrace_models.store.checking import has_its_sizes, shard_size, wrong_chunks
from headrace_models.store.chunk_map import ABSENT, DIGEST_BYTES, write_mark
from headrace_models.store.files import write_part
from headrace_models.store.model_directory import ModelDirectory
from headrace_models.store.records import Status
from headrace_models.store.space import make_allocated, make_sparse

NOT_THIS_BOOT = ""


def is_believable(status: Status) -> bool:
    """Whether marks mean what they say: written since the machine started, or flushed."""
    return status.sealed or status.boot_id == current_boot_id()


def recover(model: ModelDirectory) -> Status:
    """Make every mark true, and return the status from which writing can go on. Raises OSError.

    Costs a few `stat` calls, unless the machine was restarted in the middle of a fetch or somebody changed files: then
    every marked chunk is read.
    """
    status = model.read_status()
    resized = [file for file in range(len(model.index.files)) if not has_its_sizes(model, file)]
    if resized or (status.sealed and not model.is_full()):
        status = doubt(model, status)
        restore_sizes(model, resized)
    if not is_believable(status):
        unmark(model, wrong_chunks(model))
        status = believe(model, status)
    return status


def doubt(model: ModelDirectory, status: Status, *, proven: bool = True) -> Status:
    """Say that no mark is to be believed until somebody has looked at the bytes. Raises OSError.

    `proven`: False when a proof does not hold; then what was recorded binds no longer either, since digests of wrong
    bytes would refuse the right ones for ever.
    """
    was_proven = status.proven and all(_keeps_its_digests(model, file) for file in range(len(model.index.files)))
    bound = status.bound and proven
    doubted = Status(
        NOT_THIS_BOOT, sealed=False, proven=was_proven and proven, bound=bound, num_doubts=status.num_doubts + 1
    )
    model.write_status(doubted)
    return doubted


def believe(model: ModelDirectory, status: Status) -> Status:
    """Say that every mark is true now. Raises OSError."""
    believed = replace(status, boot_id=current_boot_id())
    model.write_status(believed)
    return believed


def unseal(model: ModelDirectory, status: Status) -> Status:
    """Say that something will be missing; what is left stays as good as it was. Raises OSError."""
    if not status.sealed:
        return status
    unsealed = replace(status, sealed=False, boot_id=current_boot_id())
    model.write_status(unsealed)
    return unsealed


def restore_sizes(model: ModelDirectory, files: Iterable[int]) -> None:
    """Give files their sizes again. What was cut off stays marked: the model must be in doubt. Raises OSError."""
    for file in files:
        layout = model.index.layouts[file]
        make_allocated(model.map(file), len(layout))
        if model.keeps_digests(file):
            make_allocated(model.digests(file), len(layout) * DIGEST_BYTES)
        model.shard(file).parent.mkdir(parents=True, exist_ok=True)
        make_sparse(model.shard(file), layout.size_bytes)


def unmark(model: ModelDirectory, chunks: Iterable[tuple[int, int]]) -> None:
    """Forget chunks. Raises OSError."""
    for file, chunk in chunks:
        write_mark(model.map(file), chunk, ABSENT)


def forget(model: ModelDirectory, file: int) -> None:
    """Forget a whole shard. Raises OSError."""
    write_part(model.map(file), ABSENT * len(model.index.layouts[file]), 0)


def _keeps_its_digests(model: ModelDirectory, file: int) -> bool:
    if not model.keeps_digests(file):
        return True
    return shard_size(model.digests(file)) == len(model.index.layouts[file]) * DIGEST_BYTES
