"""The origin as an OCI registry, asked over plain HTTP as the distribution specification says."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from headrace_models.seek_index import MEDIA_TYPE, SeekIndex
from headrace_models.trust import Trust
from loadtests.origin.access import Access
from loadtests.origin.faults import Change, ExpireTokens, Faults, Redirect, When
from loadtests.origin.registry import CONFIG_TYPE, FILEPATH, MANIFEST_TYPE
from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model

ROOT = "/v2/acme/tiny"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", num_shards=2)


@pytest.fixture
def origin(model: Path) -> Iterator[Origin]:
    with running_origin({"acme/tiny": model}) as origin:
        yield origin


@pytest.fixture
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=5) as pool:
        yield pool


def get(
    pool: urllib3.PoolManager, origin: Origin, path: str, headers: dict[str, str] | None = None
) -> urllib3.response.BaseHTTPResponse:
    return pool.request("GET", origin.url + path, headers=headers, redirect=False)


def manifest_of(pool: urllib3.PoolManager, origin: Origin, reference: str = "latest") -> Any:
    response = get(pool, origin, f"{ROOT}/manifests/{reference}")
    assert (response.status, response.headers["Content-Type"]) == (200, MANIFEST_TYPE)
    return response.json()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_the_manifest_names_every_file_by_path_digest_and_size(
    pool: urllib3.PoolManager, origin: Origin, model: Path
) -> None:
    layers = manifest_of(pool, origin)["layers"]
    named = {layer["annotations"][FILEPATH]: (layer["digest"], layer["size"]) for layer in layers}
    contents = {path.name: path.read_bytes() for path in model.iterdir()}
    assert named == {name: (sha256(data), len(data)) for name, data in contents.items()}
    types = {layer["annotations"][FILEPATH]: layer["mediaType"] for layer in layers}
    assert types["model-00001-of-00002.safetensors"] == "application/vnd.cncf.model.weight.v1.raw"
    assert types["config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"


def test_every_blob_is_what_its_digest_says(pool: urllib3.PoolManager, origin: Origin) -> None:
    manifest = manifest_of(pool, origin)
    assert manifest["config"]["mediaType"] == CONFIG_TYPE
    for descriptor in [manifest["config"], *manifest["layers"]]:
        blob = get(pool, origin, f"{ROOT}/blobs/{descriptor['digest']}")
        assert (sha256(blob.data), len(blob.data)) == (descriptor["digest"], descriptor["size"])
        part = get(pool, origin, f"{ROOT}/blobs/{descriptor['digest']}", {"Range": "bytes=0-9"})
        assert part.data in (blob.data, blob.data[:10])


def test_a_blob_of_a_file_comes_in_ranges(pool: urllib3.PoolManager, origin: Origin, model: Path) -> None:
    data = (model / "model-00001-of-00002.safetensors").read_bytes()
    part = get(pool, origin, f"{ROOT}/blobs/{sha256(data)}", {"Range": "bytes=100-199"})
    assert (part.status, part.data) == (206, data[100:200])


def test_the_manifest_is_to_be_had_by_its_digest(pool: urllib3.PoolManager, origin: Origin) -> None:
    head = pool.request("HEAD", f"{origin.url}{ROOT}/manifests/latest")
    by_digest = get(pool, origin, f"{ROOT}/manifests/{head.headers['Docker-Content-Digest']}")
    assert sha256(by_digest.data) == head.headers["Docker-Content-Digest"]


def test_a_moved_tag_names_another_manifest_and_the_old_one_stays(
    pool: urllib3.PoolManager, origin: Origin, tmp_path: Path
) -> None:
    old = get(pool, origin, f"{ROOT}/manifests/latest")
    other = write_tiny_model(tmp_path / "other", seed=1)
    origin.set_faults(Faults((Change(when=When(most=1), model="acme/tiny", directory=other),)))
    assert get(pool, origin, f"{ROOT}/manifests/latest").data != old.data
    again = get(pool, origin, f"{ROOT}/manifests/{old.headers['Docker-Content-Digest']}")
    assert again.data == old.data
    for layer in old.json()["layers"]:
        assert sha256(get(pool, origin, f"{ROOT}/blobs/{layer['digest']}").data) == layer["digest"]


def test_an_index_with_the_digest_of_every_chunk_may_come_along(
    pool: urllib3.PoolManager, origin: Origin, model: Path
) -> None:
    plain, indexed = (manifest_of(pool, origin, tag)["layers"] for tag in ("latest", "indexed"))
    (layer,) = (layer for layer in indexed if layer not in plain)
    assert (len(indexed), layer["mediaType"]) == (len(plain) + 1, MEDIA_TYPE)
    index = SeekIndex.from_json(get(pool, origin, f"{ROOT}/blobs/{layer['digest']}").data)
    assert index.trust is Trust.CHUNK
    assert {file.path for file in index.files} == {path.name for path in model.glob("*.safetensors")}


def test_what_is_no_model_has_no_index_but_is_served(pool: urllib3.PoolManager, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with running_origin({"acme/tiny": tmp_path}) as origin:
        digest = manifest_of(pool, origin)["layers"][0]["digest"]
        assert get(pool, origin, f"{ROOT}/blobs/{digest}").data == b"no model"
        assert get(pool, origin, f"{ROOT}/manifests/indexed").status == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/acme/other/manifests/latest", "NAME_UNKNOWN"),
        (f"{ROOT}/manifests/absent", "MANIFEST_UNKNOWN"),
        (f"{ROOT}/manifests/sha256:{'0' * 64}", "MANIFEST_UNKNOWN"),
        (f"{ROOT}/blobs/sha256:{'0' * 64}", "BLOB_UNKNOWN"),
    ],
)
def test_what_is_not_there_has_an_error_code(pool: urllib3.PoolManager, origin: Origin, path: str, code: str) -> None:
    response = get(pool, origin, path)
    assert (response.status, response.json()["errors"][0]["code"]) == (404, code)


def test_digests_of_files_are_computed_once(
    pool: urllib3.PoolManager, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(pool, origin)

    def fail(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("loadtests.origin.models.hashlib.file_digest", fail)
    assert manifest_of(pool, origin) == manifest
    assert get(pool, origin, f"{ROOT}/blobs/{manifest['layers'][0]['digest']}").status == 200


def token_of(pool: urllib3.PoolManager, origin: Origin, credentials: str | None = None) -> str:
    challenge = get(pool, origin, f"{ROOT}/manifests/latest").headers["WWW-Authenticate"]
    parts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    assert (parts["realm"], parts["scope"]) == (f"{origin.url}/token", "repository:acme/tiny:pull")
    headers = None if credentials is None else urllib3.make_headers(basic_auth=credentials)
    answer = get(pool, origin, f"/token?service={parts['service']}&scope={parts['scope']}", headers)
    return str(answer.json()["token"]) if answer.status == 200 else ""


def test_tokens_come_from_the_token_service(pool: urllib3.PoolManager, model: Path) -> None:
    with running_origin({"acme/tiny": model}, access=Access(registry_tokens=True)) as origin:
        assert get(pool, origin, "/v2/").status == 401
        bearer = {"Authorization": f"Bearer {token_of(pool, origin)}"}
        assert get(pool, origin, "/v2/", bearer).status == 200
        assert get(pool, origin, f"{ROOT}/manifests/latest", bearer).status == 200
        assert get(pool, origin, f"{ROOT}/manifests/latest", {"Authorization": "Bearer made-up"}).status == 401


def test_the_token_service_may_want_credentials(pool: urllib3.PoolManager, model: Path) -> None:
    access = Access(registry_tokens=True, credentials="ann:secret")
    with running_origin({"acme/tiny": model}, access=access) as origin:
        assert not token_of(pool, origin)
        assert not token_of(pool, origin, "ann:wrong")
        assert token_of(pool, origin, "ann:secret")


def test_tokens_run_out_by_number_or_by_fault(pool: urllib3.PoolManager, model: Path) -> None:
    with running_origin({"acme/tiny": model}, access=Access(registry_tokens=True, token_requests=2)) as origin:
        bearer = {"Authorization": f"Bearer {token_of(pool, origin)}"}
        assert [get(pool, origin, "/v2/", bearer).status for _ in range(3)] == [200, 200, 401]
    faults = Faults((ExpireTokens(when=When(path="*/blobs/*", first=2, most=1)),))
    with running_origin({"acme/tiny": model}, access=Access(registry_tokens=True), faults=faults) as origin:
        bearer = {"Authorization": f"Bearer {token_of(pool, origin)}"}
        layers = json.loads(get(pool, origin, f"{ROOT}/manifests/latest", bearer).data)["layers"]
        blob = f"{ROOT}/blobs/{layers[0]['digest']}"
        assert [get(pool, origin, blob, bearer).status for _ in range(3)] == [200, 401, 401]
        bearer = {"Authorization": f"Bearer {token_of(pool, origin)}"}
        assert get(pool, origin, blob, bearer).status == 200


def test_the_target_of_a_redirect_needs_no_token(pool: urllib3.PoolManager, model: Path) -> None:
    faults = Faults((Redirect(when=When(path="*/blobs/*")),))
    with running_origin({"acme/tiny": model}, access=Access(registry_tokens=True), faults=faults) as origin:
        bearer = {"Authorization": f"Bearer {token_of(pool, origin)}"}
        digest = json.loads(get(pool, origin, f"{ROOT}/manifests/latest", bearer).data)["layers"][0]["digest"]
        location = get(pool, origin, f"{ROOT}/blobs/{digest}", bearer).headers["Location"]
        assert sha256(pool.request("GET", location).data) == digest
