"""Looking for vulnerable packages, with a stand-in for pip-audit."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from requirements.audit import AuditFailed, Outcome, audit, report

SAFE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


def answering(folder: Path, *, out: str = "", err: str = "", code: int = 0) -> Path:
    (folder / "out").write_text(out)
    (folder / "err").write_text(err)
    program = folder / "pip-audit"
    program.write_text(f'#!/bin/sh\ncat "{folder}/out"; cat "{folder}/err" >&2; exit {code}\n')
    program.chmod(0o755)
    return program


def document(*packages: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_what_is_vulnerable_is_named_with_its_remedy(tmp_path: Path) -> None:
    outcome = audit(answering(tmp_path, out=document(SAFE, BAD, UNKNOWN), code=1), tmp_path / "x.txt")
    assert outcome == Outcome(2, ("b 2: PYSEC-1, fixed in 3",))
    assert report("x", outcome) == ["x.txt: b 2: PYSEC-1, fixed in 3", "x.txt: 2 packages, 1 known vulnerabilities"]


@pytest.mark.parametrize("err", ["ERROR: Failed to connect to PyPI", "HTTPSConnectionPool: Max retries exceeded"])
def test_without_a_way_to_the_data_it_is_skipped_with_the_reason(tmp_path: Path, err: str) -> None:
    outcome = audit(answering(tmp_path, err=f"warning\n{err}", code=1), tmp_path / "x.txt")
    assert report("x", outcome) == [f"x.txt: skipped, the advisories cannot be reached: {err}"]


def test_an_index_that_knows_nothing_is_no_clean_result(tmp_path: Path) -> None:
    outcome = audit(answering(tmp_path, out=document(UNKNOWN)), tmp_path / "x.txt")
    assert "skipped" in report("x", outcome)[0]


def test_any_other_failure_is_one(tmp_path: Path) -> None:
    with pytest.raises(AuditFailed, match="no such option"):
        audit(answering(tmp_path, err="error: no such option", code=2), tmp_path / "x.txt")
