"""loadtests.peers: how they are installed and run, and, where they are installed, what they fetch from the origin."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model
from loadtests.peers import intake
from loadtests.peers.installation import installed_peers, wanted_stamp
from loadtests.peers.intake import Taker, anonymous_bytes
from loadtests.peers.running import Errand, Peer, PeerFailed, environment, run_module, run_peer
from loadtests.peers.tensorizer_peer import serialize

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
needs_peers = pytest.mark.skipif(
    installed_peers() is None, reason="the peers are not installed (python -m loadtests.peers.installation)"
)


@pytest.fixture
def torch() -> Any:
    """Not imported before a test needs it: that takes seconds."""
    return pytest.importorskip("torch")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", num_shards=2)


@pytest.fixture
def origin(model: Path) -> Iterator[Origin]:
    with running_origin({"acme/tiny": model}) as origin:
        yield origin


@pytest.fixture
def errand(origin: Origin, tmp_path: Path) -> Errand:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Errand(origin.url, "acme/tiny", scratch, with_digest=True)


def expected_digest(model: Path) -> str | None:
    from safetensors.torch import load_file

    with Taker("", "", with_digest=True) as taker:
        for path in sorted(model.glob("*.safetensors"), reverse=True):
            for name, tensor in load_file(path).items():
                taker.take(name, tensor)
        return taker.finish().digest


def weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_a_folder_counts_as_installed_for_one_lock_only(tmp_path: Path) -> None:
    folder, lock = tmp_path / "peers", tmp_path / "peers.txt"
    lock.write_text("one==1")
    assert installed_peers(folder, lock) is None
    folder.mkdir()
    assert installed_peers(folder, lock) is None
    (folder / "headrace-peers").write_text(wanted_stamp(b"one==1"))
    assert installed_peers(folder, lock) == folder
    lock.write_text("one==2")
    assert installed_peers(folder, lock) is None


def test_a_peer_is_kept_from_the_caller_s_credentials_and_proxies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HTTPS_PROXY", "no_proxy", "RUNAI_STREAMER_MEMORY_LIMIT"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("LANG", "C.UTF-8")
    found = environment(Errand("http://origin", "m", tmp_path), tmp_path / "peers")
    assert "mine" not in found.values()
    assert found["LANG"] == "C.UTF-8"
    assert (found["HF_ENDPOINT"], found["AWS_ENDPOINT_URL"]) == ("http://origin/hub", "http://origin/s3")
    assert found["PYTHONPATH"] == str(tmp_path / "peers")


@needs_proc
def test_what_came_is_counted_and_proved_whatever_its_order(torch: Any) -> None:
    tensors = {"b": torch.ones(3, 5, dtype=torch.bfloat16), "a": torch.tensor(7)}

    def digest(names: str, **changed: object) -> str | None:
        with Taker("peer", "1", with_digest=True) as taker:
            for name in names:
                taker.take(name, changed.get(name, tensors[name]))
            result = taker.finish()
        assert (result.num_tensors, result.tensor_bytes) == (2, 30 + 8)
        assert 0 < result.first_tensor_seconds <= result.seconds
        return result.digest

    assert digest("ab") == digest("ba")
    assert digest("ab") != digest("ab", a=torch.tensor(8))


@needs_proc
def test_the_peak_of_memory_is_kept_after_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert anonymous_bytes() > 1 << 20
    readings = iter([100])
    monkeypatch.setattr(intake, "anonymous_bytes", lambda: next(readings, 30))
    monkeypatch.setattr(intake, "_LOOK_SECONDS", 3600)
    with Taker("peer", "1", with_digest=False) as taker:
        result = taker.finish()
    assert (result.anon_rss_before_bytes, result.peak_anon_rss_bytes, result.digest) == (100, 100, None)


@needs_proc
def test_a_peer_without_its_packages_is_told(errand: Errand, tmp_path: Path) -> None:
    bare = {"PATH": "", "PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1"}
    with pytest.raises(PeerFailed, match=re.compile(r"ended with 1: .*ModuleNotFoundError", re.DOTALL)):
        run_module(Peer.TENSORIZER, ["serialize", "a", "b"], environment=bare, seconds=30)


@needs_proc
def test_a_peer_that_takes_too_long_is_ended(errand: Errand) -> None:
    with pytest.raises(PeerFailed, match="not done after"):
        run_peer(Peer.HUB, errand, folder=errand.scratch, timeout_seconds=0.05)


@needs_proc
def test_the_hub_s_peer_brings_the_model(origin: Origin, errand: Errand, model: Path, torch: Any) -> None:
    pytest.importorskip("huggingface_hub")
    found = run_peer(Peer.HUB, errand, folder=errand.scratch)
    assert (found.peer, found.num_tensors, found.digest) == ("huggingface_hub", 8, expected_digest(model))
    assert origin.stats().body_bytes("*.safetensors") == weight_bytes(model)


@needs_peers
def test_runai_s_peer_streams_every_byte_once(origin: Origin, errand: Errand, model: Path) -> None:
    folder = installed_peers()
    assert folder is not None
    found = run_peer(Peer.RUNAI, errand, folder=folder)
    assert (found.num_tensors, found.digest) == (8, expected_digest(model))
    assert origin.stats().body_bytes("*.safetensors") == weight_bytes(model)


@needs_peers
def test_tensorizer_s_peer_reads_what_was_serialized_for_it(model: Path, tmp_path: Path) -> None:
    folder = installed_peers()
    assert folder is not None
    directory = serialize(model, tmp_path / "tensors", folder=folder)
    assert serialize(model, directory, folder=folder) == directory
    with running_origin({"acme/tiny": directory}) as origin:
        found = run_peer(Peer.TENSORIZER, Errand(origin.url, "acme/tiny", tmp_path, with_digest=True), folder=folder)
    assert (found.num_tensors, found.digest) == (8, expected_digest(model))
    assert sys.modules.keys().isdisjoint({"tensorizer", "runai_model_streamer"})
