"""The child process that converts: its end, its last line, and that it cannot outlive its parent."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_models import PreparationFailed
from headrace_models.child_process import MAX_LINE_CHARS, last_line, run_module


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run a script as a module, with what is called while it runs."""

    def call(script: str, while_waiting: Callable[[], None] = lambda: None) -> None:
        (tmp_path / "headrace_child.py").write_text(script)
        run_module("headrace_child", ["a"], environment={"PYTHONPATH": str(tmp_path)}, while_waiting=while_waiting)

    return call


def test_a_child_that_succeeds_returns(run: Callable[..., None]) -> None:
    run("import sys; assert sys.argv[1:] == ['a']")


def test_a_child_that_fails_is_told_by_its_last_line(run: Callable[..., None]) -> None:
    with pytest.raises(PreparationFailed, match="^what went wrong$"):
        run("import sys; sys.exit('noise\\n\\x1b what went wrong\\n\\n'.replace('\\x1b ', ''))")


def test_a_child_that_is_killed_is_told_by_its_signal(run: Callable[..., None]) -> None:
    with pytest.raises(PreparationFailed, match=r"SIGKILL \(out of memory\?\)"):
        run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_a_full_disk_in_the_child_is_an_oserror_here(run: Callable[..., None]) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    assert caught.value.errno == errno.ENOSPC


def test_what_is_raised_while_waiting_ends_the_child(run: Callable[..., None], tmp_path: Path) -> None:
    def interrupt() -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    script = "import os, pathlib, sys\npathlib.Path(sys.argv[0]).with_name('pid').write_text(str(os.getpid()))\n"
    with pytest.raises(KeyboardInterrupt):
        run(script + "import threading\nthreading.Event().wait()", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_child_leaves_when_its_parent_is_gone() -> None:
    script = (
        "import threading; from headrace_models.child_process import exit_with_parent; exit_with_parent();"
        "print(flush=True); threading.Event().wait()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait() == 1


def test_a_child_that_watches_its_parent_still_ends_by_itself() -> None:
    script = "from headrace_models.child_process import exit_with_parent; exit_with_parent()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        assert process.wait() == 0


def test_the_last_line_is_printable_and_bounded() -> None:
    assert last_line(b"first\n\x1b[31mred\x07\n \n") == "[31mred"
    assert len(last_line(b"x" * 10_000)) == MAX_LINE_CHARS
    assert last_line(b"") == ""
