"""`make audit`: looks for locked packages with known vulnerabilities.

pip-audit (https://github.com/pypa/pip-audit) compares the locks with the advisories that PyPI keeps for each release.
It runs in an environment of its own, .tools/audit, made from audit.txt. Where the advisories cannot be reached, that is
said and is no failure; a vulnerable package is one.
"""

import json
import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ENVIRONMENT = FOLDER.parent / ".tools" / "audit"
LOCKS = ("cpu", "cuda")

_UNREACHABLE = re.compile(
    r"failed to connect|Max retries exceeded|ConnectionError|ConnectTimeout|timed out|NameResolution|\b(403|502|503)\b",
    flags=re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an audit came to. `skipped`: why there was none."""

    num_packages: int = 0
    findings: tuple[str, ...] = ()
    skipped: str | None = None


class AuditFailed(Exception):
    """pip-audit did not run to its end, for another reason than the network."""


def ensure_program(environment: Path = ENVIRONMENT) -> Path:
    """The path of pip-audit; installed where it is missing or the lock has changed."""
    stamp, lock = environment / "audit.txt", (FOLDER / "audit.txt").read_text()
    if not stamp.exists() or stamp.read_text() != lock:
        venv.create(environment, clear=True, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(FOLDER / "audit.txt")]
        subprocess.run([environment / "bin/python", *install], check=True)
        stamp.write_text(lock)
    return environment / "bin/pip-audit"


def audit(program: Path, lock: Path) -> Outcome:
    """Ask about every package of a lock. Raises AuditFailed."""
    options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
    done = subprocess.run([program, *options, "-r", lock], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if _UNREACHABLE.search(done.stderr):
            return Outcome(skipped=f"the advisories cannot be reached: {last}")
        raise AuditFailed(last) from None
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return Outcome(skipped="the index knows none of these packages")
    findings = tuple(
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in asked
        for found in package["vulns"]
    )
    return Outcome(len(asked), findings)


def report(name: str, outcome: Outcome) -> list[str]:
    """Lines for the terminal."""
    if outcome.skipped is not None:
        return [f"{name}.txt: skipped, {outcome.skipped}"]
    findings = [f"{name}.txt: {finding}" for finding in outcome.findings]
    return [*findings, f"{name}.txt: {outcome.num_packages} packages, {len(findings)} known vulnerabilities"]


def main() -> int:
    """The exit status: 0 nothing found or nothing to be had, 1 something found, or an audit that failed."""
    program, found = ensure_program(), False
    for name in sys.argv[1:] or LOCKS:
        try:
            outcome = audit(program, FOLDER / f"{name}.txt")
        except AuditFailed as error:
            print(f"{name}.txt: the audit failed: {error}", file=sys.stderr)
            return 1
        print("\n".join(report(name, outcome)))
        found = found or bool(outcome.findings)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
