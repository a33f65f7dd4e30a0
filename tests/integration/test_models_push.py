"""A model pushed to the reference registry and pulled on the next node, which believes nothing but one digest."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3

from headrace_models.embedded import embedded_source, find_sources
from headrace_models.errors import FetchFailed, ModelBusy
from headrace_models.locations import OciLocation
from headrace_models.push.collecting import contents_of_directory
from headrace_models.push.session import PushOptions, push_model
from headrace_models.reading.open_model import open_model
from headrace_models.reference import parse_reference
from headrace_models.seek_index_json import decode_known, encode
from headrace_models.sources.base import SourceOptions
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from requirements.debian_tools import ensure_docker_registry
from tests.fakes.artifacts import FakeLayer, push, seek_index_layer
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.command import one_line
from tests.fakes.cutting_proxy import running_cutting_proxy
from tests.fakes.real_registry import PASSWORD, USER, password_auth, running_real_registry
from tests.fakes.token_service import running_token_service

pytestmark = pytest.mark.timeout(120)

Finished = subprocess.CompletedProcess[str]

MINILM = embedded_source("all-minilm-l6-v2")


@pytest.fixture(scope="module")
def binary() -> Path:
    found = ensure_docker_registry()
    if found is None:
        pytest.skip("no docker-registry here, and none to be had from apt")
    return found


@dataclass(frozen=True, slots=True)
class RealRegistry:
    """One that runs, and where it keeps its blobs."""

    address: str
    directory: Path

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        hex_digits = digest.removeprefix("sha256:")
        return self.directory / "storage/docker/registry/v2/blobs/sha256" / hex_digits[:2] / hex_digits / "data"

    def manifest(self, repository: str, name: str) -> dict[str, Any]:
        """What a name stands for."""
        host, _colon, port = self.address.partition(":")
        with closing(urllib3.HTTPConnectionPool(host, int(port))) as pool:
            url = f"/v2/{repository}/manifests/{name}"
            answer = pool.request("GET", url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
        assert answer.status in {200, 404}
        found: dict[str, Any] = json.loads(answer.data)
        return found


@pytest.fixture(scope="module")
def registry(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    directory = tmp_path_factory.mktemp("registry")
    with running_real_registry(binary, directory) as address:
        yield RealRegistry(address, directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 8 MB in two shards."""
    directory = tmp_path_factory.mktemp("model")
    write_checkpoint(directory, num_layers=8, hidden=160, shards=2)
    (directory / "README.md").write_text("# A model\n")
    return directory


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with a cache of its own."""

    folder: Path

    @property
    def cache_dir(self) -> Path:
        return self.folder / "cache"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the command."""
        self.folder.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "HEADRACE_CACHE__DIR": str(self.cache_dir),
            "DOCKER_CONFIG": str(self.folder),
            "HOME": str(self.folder),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "headrace_server", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
            # What a shell starts in the background ignores interrupts, and so would we.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str) -> Finished:
        """Run it to its end."""
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def push(self, source: object, destination: str, *options: str) -> dict[str, Any]:
        """Push; what `--json` says."""
        done = self.run("push", str(source), destination, "--json", *options)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def stored(self, reference: str) -> StoredModel:
        """What its cache has of a reference."""
        found = ModelStore(self.cache_dir).find(str(parse_reference(reference)))
        assert found is not None
        return found

    def log_in(self, registry: str) -> None:
        """Write Docker's config.json."""
        self.folder.mkdir(exist_ok=True)
        entry = {"username": USER, "password": PASSWORD}
        (self.folder / "config.json").write_text(json.dumps({"auths": {registry: entry}}))


@pytest.fixture
def first(tmp_path: Path) -> Node:
    return Node(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Node:
    return Node(tmp_path / "second")


def is_the_model(found: StoredModel, model: Path) -> bool:
    shards = all(
        found.shard_path(number).read_bytes() == (model / file.path).read_bytes()
        for number, file in enumerate(found.index.files)
    )
    skeleton = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    return shards and all((found.skeleton / name).read_bytes() == (model / name).read_bytes() for name in skeleton)


@pytest.mark.parametrize("form", ["modelpack", "docker"])
def test_the_next_node_checks_every_chunk_by_one_digest(
    registry: RealRegistry, model: Path, first: Node, second: Node, form: str
) -> None:
    done = first.run("push", str(model), f"oci://{registry.address}/team/{form}:v1", "--format", form)
    assert done.returncode == 0, done.stderr
    told, reference = done.stdout.splitlines()
    assert "trust chunk" in told
    assert reference.startswith(f"oci://{registry.address}/team/{form}:v1@sha256:")
    pulled = second.run("pull", reference, "--require-trust", "chunk")
    assert pulled.returncode == 0, pulled.stderr
    found = second.stored(reference)
    assert (found.index.trust, found.status().sealed) == (Trust.CHUNK, True)
    assert is_the_model(found, model)
    again = first.push(model, f"oci://{registry.address}/team/{form}:v2", "--format", form)
    assert reference.endswith(again["digest"])
    assert again["sent_bytes"] == 0


def test_what_one_node_has_fetched_it_pushes_on_without_sending_what_the_registry_has(
    registry: RealRegistry, model: Path, first: Node, second: Node
) -> None:
    reference = first.push(model, f"oci://{registry.address}/team/source:v1")["reference"]
    assert second.run("pull", reference).returncode == 0
    for name in (reference, second.stored(reference).key):
        pushed = second.push(name, f"oci://{registry.address}/elsewhere/{len(name)}:v1")
        assert pushed["mounted_bytes"] > pushed["total_bytes"] * 0.99
        assert pushed["sent_bytes"] < 20_000  # the config, and an index of the shards in our words
    third = Node(second.folder / "third")
    assert third.run("pull", pushed["reference"], "--require-trust", "chunk").returncode == 0
    assert is_the_model(third.stored(pushed["reference"]), model)


def test_a_chunk_that_the_registry_has_damaged_is_noticed_when_it_is_first_read(
    registry: RealRegistry, model: Path, first: Node, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "m", num_layers=4, hidden=160, seed=7)
    reference = first.push(tmp_path / "m", f"oci://{registry.address}/team/damaged:v1")["reference"]
    layers = registry.manifest("team/damaged", "v1")["layers"]
    shard = next(layer for layer in layers if layer["annotations"]["org.cncf.model.filepath"] == "model.safetensors")
    with open_model(reference, tmp_path / "look") as looked:
        damaged = looked.index.tensors_by_name["model.layers.2.mlp.up_proj.weight"]
    with registry.blob(shard["digest"]).open("r+b") as blob:
        blob.seek(damaged.begin + 5)
        byte = blob.read(1)[0]
        blob.seek(damaged.begin + 5)
        blob.write(bytes([byte ^ 1]))
    with open_model(reference, tmp_path / "cache") as opened:
        assert opened.index.trust is Trust.CHUNK
        expected = (tmp_path / "m/model.safetensors").read_bytes()
        for group in ("embedding", "layer.1", "layer.3"):
            for tensor in opened.group(group):
                place = opened.index.tensors_by_name[tensor.name]
                assert bytes(tensor.data) == expected[place.begin : place.end]
        with pytest.raises(FetchFailed, match="digest"):
            opened.tensor(damaged.name)


def test_an_index_with_invented_headers_ends_the_fetch(
    registry: RealRegistry, model: Path, first: Node, second: Node
) -> None:
    """Headers with the digests that the index gives them, but not the shard's: whoever made the artifact lies."""
    first.push(model, f"oci://{registry.address}/team/honest:v1")
    layers = registry.manifest("team/honest", "v1")["layers"]
    files = {
        layer["annotations"]["org.cncf.model.filepath"]: registry.blob(layer["digest"]).read_bytes() for layer in layers
    }
    written = decode_known(files.pop("headrace.seekindex.json"))
    assert written is not None
    forged = forge(encode(written.index, written.headers), written.headers)
    raw = [
        FakeLayer(layer["mediaType"], files[path], {"org.cncf.model.filepath": path})
        for layer in layers
        if (path := layer["annotations"]["org.cncf.model.filepath"]) in files
    ]
    digest = push(registry.address, "team/forged", [*raw, seek_index_layer(forged)])
    done = second.run("pull", f"oci://{registry.address}/team/forged@{digest}")
    assert done.returncode == 1
    assert "digest" in done.stderr
    assert not second.stored(f"oci://{registry.address}/team/forged@{digest}").status().complete


def forge(data: bytes, headers: Any) -> bytes:
    """The index with two tensors of one shape exchanged in a header, and the header's digest put right."""
    written = decode_known(data)
    assert written is not None
    index, path = written.index, min(headers)
    number = next(n for n, file in enumerate(index.files) if file.path == path)
    names = [
        tensor.name for tensor in index.tensors if tensor.file == number and tensor.name.endswith("up_proj.weight")
    ][:2]
    marks = [json.dumps(name).encode() for name in names]
    header = headers[path].replace(marks[0], b"<0>").replace(marks[1], marks[0]).replace(b"<0>", marks[1])
    assert len(header) == len(headers[path])
    digest = hashlib.sha256(header).digest()
    old = bytes.fromhex((index.files[number].chunk_digests or ())[0].hex)
    document = json.loads(data)
    packed = base64.b64decode(document["files"][number]["chunk_digests"])
    document["files"][number]["chunk_digests"] = base64.b64encode(packed.replace(old, digest)).decode()
    document["headers"][path] = base64.b64encode(header).decode()
    swapped = {names[0]: names[1], names[1]: names[0]}
    for tensor in document["tensors"]:
        tensor[0] = swapped.get(tensor[0], tensor[0])
    return json.dumps(document).encode()


@pytest.mark.parametrize("cut_after", [[3_000_000], [200_000, 2_000_000, 1_000_000]])
def test_an_upload_that_breaks_goes_on_or_begins_again_and_ends_well(
    registry: RealRegistry, model: Path, first: Node, second: Node, cut_after: list[int]
) -> None:
    with running_cutting_proxy(registry.address) as proxy:
        proxy.cut_after = list(cut_after)
        name = f"team/cut{len(cut_after)}"
        pushed = first.push(model, f"oci://{proxy.address}/{name}:v1", "--max-connections", "1")
        assert proxy.num_cut == len(cut_after)
    reference = f"oci://{registry.address}/{name}@{pushed['digest']}"
    assert second.run("pull", reference, "--require-trust", "chunk").returncode == 0
    assert is_the_model(second.stored(reference), model)


def test_a_blob_in_pieces_survives_broken_connections(
    registry: RealRegistry, model: Path, second: Node, tmp_path: Path
) -> None:
    """This registry throws an upload away whose last piece was cut off, so the blob begins again."""
    contents = contents_of_directory(parse_reference(str(model)))
    options = PushOptions(SourceOptions(tmp_path), num_connections=1, piece_bytes=1 << 20)
    with running_cutting_proxy(registry.address) as proxy:
        proxy.cut_after = [2_500_000, 1_500_000]
        pushed = push_model(contents, OciLocation.parse(f"{proxy.address}/team/pieces:v1"), options)
        assert proxy.num_cut == 2
    reference = f"oci://{registry.address}/team/pieces@{pushed.digest}"
    assert second.run("pull", reference, "--require-trust", "chunk").returncode == 0
    assert is_the_model(second.stored(reference), model)


def test_an_interrupt_ends_a_push_at_once_and_leaves_no_lock_and_no_name(
    registry: RealRegistry, model: Path, first: Node
) -> None:
    source = first.push(model, f"oci://{registry.address}/team/interrupted:v1")["reference"]
    assert first.run("pull", source).returncode == 0
    with running_cutting_proxy(registry.address) as proxy:
        proxy.hold_after = 1_000_000
        with first.start("push", source, f"oci://{proxy.address}/team/held:v1") as process:
            assert proxy.held.wait(30)
            store = ModelStore(first.cache_dir)
            with pytest.raises(ModelBusy):
                store.remove(first.stored(source).key)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
            assert time.monotonic() - began < 15
    assert (process.returncode, output) == (1, "")
    assert errors.strip().splitlines()[-1].startswith("headrace: interrupted")
    assert registry.manifest("team/held", "v1")["errors"][0]["code"] in {"NAME_UNKNOWN", "MANIFEST_UNKNOWN"}
    store.remove(first.stored(source).key)


def test_a_registry_with_passwords_lets_in_who_knows_one(
    binary: Path, model: Path, first: Node, second: Node, tmp_path: Path
) -> None:
    with running_real_registry(binary, tmp_path, auth=password_auth(tmp_path)) as address:
        refused = first.run("push", str(model), f"oci://{address}/team/m:v1")
        assert refused.returncode == 1
        line = one_line(refused)
        assert f"may not be pushed to (authentication required); credentials: docker login {address}" in line
        for node in (first, second):
            node.log_in(address)
        reference = first.push(model, f"oci://{address}/team/m:v1")["reference"]
        assert second.run("pull", reference, "--require-trust", "chunk").returncode == 0
        assert is_the_model(second.stored(reference), model)


def test_a_registry_with_tokens_is_asked_for_one_to_push_with(
    binary: Path, model: Path, first: Node, second: Node, tmp_path: Path
) -> None:
    with (
        running_token_service(tmp_path) as tokens,
        running_real_registry(binary, tmp_path, auth=tokens.auth) as address,
    ):
        anybody = first.run("push", str(model), f"oci://{address}/team/m:v1")
        assert anybody.returncode == 1
        assert "gives no token to push to team/m" in one_line(anybody)
        for node in (first, second):
            node.log_in(address)
        tokens.allows_push = False
        refused = first.run("push", str(model), f"oci://{address}/team/m:v1")
        assert refused.returncode == 1
        assert "may not be pushed to" in one_line(refused)
        tokens.allows_push = True
        tokens.scopes.clear()
        reference = first.push(model, f"oci://{address}/team/m:v1")["reference"]
        assert tokens.scopes == [["repository:team/m:pull,push"]]
        assert second.run("pull", reference, "--require-trust", "chunk").returncode == 0
        assert tokens.scopes[1:] == [["repository:team/m:pull"]]
        pushed = second.push(reference, f"oci://{address}/team/other:v1")
        assert pushed["mounted_bytes"] > pushed["total_bytes"] * 0.99


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("{model}", "https://h.example/dir/"), 2, "models are pushed to registries"),
        (("{model}", "registry.example/m"), 2, "destination"),
        (("{model}", f"oci://r.example/m:v1@sha256:{'0' * 64}"), 2, "a digest follows from what is pushed"),
        (("{model}", "oci://r.example/UPPER"), 2, "not a repository"),
        (("absent", "oci://r.example/m"), 1, "absent is not in the model cache"),
        (("./absent", "oci://r.example/m"), 1, "no such directory"),
        (("hf://org/absent", "oci://r.example/m"), 1, "headrace pull hf://org/absent"),
        (("embedded:all-minilm-l6-v2", "oci://r.example/m"), 1, "headrace pull embedded:all-minilm-l6-v2"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    model: Path, first: Node, arguments: tuple[str, str], code: int, said: str
) -> None:
    done = first.run("push", arguments[0].format(model=model), arguments[1])
    assert done.returncode == code
    assert said in one_line(done)


def test_a_model_that_is_here_in_part_is_refused_with_what_completes_it(
    registry: RealRegistry, model: Path, first: Node
) -> None:
    reference = first.push(model, f"oci://{registry.address}/team/part:v1")["reference"]
    with open_model(reference, first.cache_dir) as opened:
        opened.tensor("model.norm.weight")
    done = first.run("push", reference, f"oci://{registry.address}/team/rest:v1")
    assert done.returncode == 1
    assert f"headrace pull {parse_reference(reference)}" in one_line(done)


@pytest.mark.skipif(find_sources(MINILM) is None, reason="the wheel of all-minilm-l6-v2 is not installed")
def test_an_embedded_model_is_pushed_once_it_has_been_prepared(
    registry: RealRegistry, first: Node, second: Node
) -> None:
    assert first.run("pull", "embedded:all-minilm-l6-v2").returncode == 0
    pushed = first.push("embedded:all-minilm-l6-v2", f"oci://{registry.address}/team/minilm:v1")
    assert second.run("pull", pushed["reference"], "--require-trust", "chunk").returncode == 0
    assert second.stored(pushed["reference"]).status().sealed
