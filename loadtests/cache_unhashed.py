"""The fetching process without any hashing, to see what hashing costs: `headrace_models.fetch` with its digests left
out by replacement, here and nowhere else.

    python -P loadtests/cache_unhashed.py < REQUEST

What it fetched is right only if the source and the network were: whoever runs this checks the files afterwards.
"""

import runpy
from types import SimpleNamespace

from headrace_models.store import model_writer

_NO_DIGEST = SimpleNamespace(digest=lambda: bytes(32))


def leave_out_hashing() -> None:
    """From now on chunks have no digest, none is compared, and nothing is left for digests of whole files to prove."""

    def record_nothing(_writer: object, _file: int, _chunk: int, _digest: bytes) -> bool:
        return False

    changes: tuple[tuple[object, str, object], ...] = (
        (model_writer, "hashlib", SimpleNamespace(sha256=lambda _data: _NO_DIGEST)),
        (model_writer, "needed_proofs", lambda _index: ()),
        (model_writer.ModelWriter, "_compare", record_nothing),
    )
    for place, name, replacement in changes:
        if not hasattr(place, name):
            raise RuntimeError(f"{place} has no {name} any more: this would measure nothing")
        setattr(place, name, replacement)


if __name__ == "__main__":
    leave_out_hashing()
    runpy.run_module("headrace_models.fetch", run_name="__main__", alter_sys=True)
