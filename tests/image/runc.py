"""A container as a cluster would run it, from an image in buildah's storage: runc on a bundle made here.

Nothing of the engine's convenience is used: a foreign user, a root that cannot be written to, no capabilities, no new
privileges, the system calls that Podman allows and Docker does (those that place memory are refused), 64 MiB of shared
memory. Volumes are folders of the test. The network is the machine's, so that the test reaches the server, or none.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLATFORM_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
# Docker's profile allows them to those with CAP_SYS_NICE only.
PLACING_MEMORY = {"get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node", "migrate_pages", "move_pages"}
ENDING_SECONDS = 60.0
_SHM_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose file system is mounted at `root`. `config`: as `docker inspect` shows it."""

    name: str
    root: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a container is run. `volumes`: path inside → folder outside."""

    user: str
    volumes: Mapping[str, Path]
    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    has_network: bool = True


@dataclass(frozen=True, slots=True)
class Container:
    """A running one; `output` is what it writes."""

    id: str
    process: "subprocess.Popen[bytes]"
    folder: Path
    output: Path
    environment: Mapping[str, str]

    def said(self) -> str:
        """Everything it has written so far."""
        return self.output.read_text(errors="replace")

    def execute(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in it, as `docker exec` does."""
        given = [f"--env={name}={value}" for name, value in variables.items()]
        full = [*self._runc("exec"), *given, self.id, *command]
        return subprocess.run(full, capture_output=True, text=True, timeout=300, check=False, env=self.environment)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its first process, as `docker stop` does."""
        subprocess.run([*self._runc("kill"), self.id, number.name], check=True, env=self.environment)

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(ENDING_SECONDS)

    def _runc(self, command: str) -> list[str]:
        return ["runc", "--root", str(self.folder / "runc"), command]


@contextmanager
def mounted(buildah: Sequence[str], name: str, environment: Mapping[str, str]) -> Iterator[Image]:
    """The image's file system, for as long as this lasts."""
    container = _output([*buildah, "from", "--pull-never", name], environment)
    try:
        root = Path(_output([*buildah, "mount", container], environment))
        described = json.loads(_output([*buildah, "inspect", "--type", "image", name], environment))
        yield Image(name, root, described["Docker"]["config"])
    finally:
        subprocess.run([*buildah, "rm", container], check=True, capture_output=True, env=environment)


@contextmanager
def started(image: Image, terms: Terms, environment: Mapping[str, str]) -> Iterator[Container]:
    """Run it; at the end whatever is left of it is killed."""
    folder = Path(tempfile.mkdtemp(prefix="hc-"))
    (folder / "config.json").write_text(json.dumps(bundle(image, terms), indent=1))
    output = folder / "output"
    id = f"headrace-{os.getpid()}-{folder.name}"
    command = ["runc", "--root", str(folder / "runc"), "run", "--bundle", str(folder), id]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    container = Container(id, process, folder, output, environment)
    try:
        yield container
    finally:
        _end(container)
        shutil.rmtree(folder)


def bundle(image: Image, terms: Terms) -> dict[str, Any]:
    """The runtime's configuration: https://github.com/opencontainers/runtime-spec/blob/main/config.md."""
    uid, gid = map(int, terms.user.split(":"))
    kinds = ["pid", "ipc", "uts", "mount", *([] if terms.has_network else ["network"])]
    variables = [*image.config["Env"], *(f"{name}={value}" for name, value in terms.variables.items())]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.root), "readonly": True},
        "hostname": "headrace",
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": [*image.config["Entrypoint"], *(terms.arguments or image.config["Cmd"])],
            "env": variables,
            "cwd": image.config["WorkingDir"],
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "mounts": [*_SYSTEM_MOUNTS, *(_bound(inside, outside) for inside, outside in terms.volumes.items())],
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "seccomp": seccomp_profile(Path("/usr/share/containers/seccomp.json")),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def seccomp_profile(path: Path) -> dict[str, Any]:
    """Podman's profile as it is for containers without capabilities, in the runtime's form."""
    arch = PLATFORM_ARCHES[os.uname().machine]
    profile = json.loads(path.read_text())
    rules = [rule for rule in profile["syscalls"] if _is_for(rule["includes"], arch)]
    return {
        "defaultAction": profile["defaultAction"],
        "architectures": [f"SCMP_ARCH_{os.uname().machine.upper()}"],
        "syscalls": [
            {
                "names": [name for name in rule["names"] if name not in PLACING_MEMORY],
                "action": rule["action"],
                "args": rule["args"] or [],
                **({"errnoRet": rule["errnoRet"]} if rule.get("errnoRet") else {}),
            }
            for rule in rules
        ],
    }


def _is_for(includes: Mapping[str, list[str]], arch: str) -> bool:
    return not includes.get("caps") and arch in includes.get("arches", [arch])


def _bound(inside: str, outside: Path) -> dict[str, Any]:
    return {"destination": inside, "type": "bind", "source": str(outside), "options": ["rbind", "rw", "nosuid"]}


def _memory(path: str, size_bytes: int, mode: str) -> dict[str, Any]:
    options = ["nosuid", "nodev", f"mode={mode}", f"size={size_bytes}"]
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


_SYSTEM_MOUNTS = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    _memory("/dev/shm", _SHM_BYTES, "1777"),
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    _memory("/tmp", 1024**3, "1777"),
)


def _end(container: Container) -> None:
    """Kill what still runs, and have the runtime forget it."""
    subprocess.run(
        [*container._runc("delete"), "--force", container.id],
        check=False,
        capture_output=True,
        env=container.environment,
    )
    container.process.wait(ENDING_SECONDS)
    until = time.monotonic() + ENDING_SECONDS
    while any((container.folder / "runc").glob("*")) and time.monotonic() < until:
        time.sleep(0.05)


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()
