"""Digests: the strict text form, and files in blocks."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models import Sha256, sha256_of_file

GOOD = "sha256:" + "0a" * 32


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_parses_back_from_its_text(raw: bytes) -> None:
    assert Sha256.parse(str(Sha256(raw.hex()))) == Sha256(raw.hex())


@pytest.mark.parametrize(
    "text", ["", "sha256:", GOOD[:-1], GOOD + "0", GOOD.upper(), GOOD + "\n", " " + GOOD, "md5:" + "0" * 64, "0a" * 32]
)
def test_anything_but_sha256_and_64_lower_case_digits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        Sha256.parse(text)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert sha256_of_file(path).hex == hashlib.sha256(b"x" * size).hexdigest()
