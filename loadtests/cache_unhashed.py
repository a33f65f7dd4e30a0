"""The fetching process without any hashing, to see what hashing costs: `headrace_models.fetch` with its digests left
out by replacement, here and nowhere else.

    python -P loadtests/cache_unhashed.py < REQUEST

What it fetched is right only if the source and the network were: whoever runs this checks the files afterwards.
"""

import runpy
from types import SimpleNamespace

from headrace_models.sources.base import Proof
from headrace_models.store import model_writer
from headrace_models.store.model_directory import ModelDirectory

_NO_DIGEST = SimpleNamespace(digest=lambda: bytes(32))


def leave_out_hashing() -> None:
    """From now on chunks have no digest, none is compared, and proofs are taken for good."""

    def record_nothing(_writer: object, _file: int, _chunk: int, _digest: bytes) -> bool:
        return False

    def believe(_model: ModelDirectory, _proof: Proof) -> bool:
        return True

    changes = {"hashlib": SimpleNamespace(sha256=lambda _data: _NO_DIGEST), "proof_holds": believe}
    for name, replacement in changes.items():
        if not hasattr(model_writer, name):
            raise RuntimeError(f"model_writer has no {name} any more: this would measure nothing")
        setattr(model_writer, name, replacement)
    if not hasattr(model_writer.ModelWriter, "_compare"):
        raise RuntimeError("ModelWriter compares in another way: this would measure nothing")
    model_writer.ModelWriter._compare = record_nothing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    leave_out_hashing()
    runpy.run_module("headrace_models.fetch", run_name="__main__", alter_sys=True)
