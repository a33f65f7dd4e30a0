"""Models in a registry: every form of artifact, what goes wrong on the way, and who gets which credentials."""

import errno
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import zstandard

from headrace_models.digest import Sha256
from headrace_models.errors import (
    DigestMismatch,
    ModelNotFound,
    NoSpace,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
    StoreUnusable,
    UnsafeModel,
)
from headrace_models.reference import parse_reference
from headrace_models.sources.base import Body, FileRange, Literal, Proof, SourceFile, SourceOptions, read_exactly
from headrace_models.sources.layer_spool import LayerSpool
from headrace_models.sources.oci import OciSource, open_oci
from headrace_models.sources.oci_artifact import ModelLayer, Packing
from headrace_models.sources.oci_manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from headrace_models.sources.windows import FileBody
from tests.fakes.artifacts import FakeLayer, Form, layers_of, manifest_of, push, seek_index_layer, tar_of
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.memory_source import MemorySource
from tests.fakes.registry import FakeRegistry, Login, running_registry

REPOSITORY = "team/model"
RAW = "application/vnd.cncf.model.weight.v1.raw"
TAR = "application/vnd.cncf.model.weight.v1.tar"
GZIP = "application/vnd.cncf.model.weight.v1.tar+gzip"
ZSTD = "application/vnd.cncf.model.weight.v1.tar+zstd"
SECRET = "s3cret-word"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running_registry() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_checkpoint(directory, num_layers=2, hidden=16, shards=2)
    return directory


@pytest.fixture
def options(tmp_path: Path) -> SourceOptions:
    (tmp_path / "spool").mkdir()
    return SourceOptions(tmp_path / "spool", environ={"HOME": str(tmp_path), "PATH": os.defpath})


@contextmanager
def opened(registry: FakeRegistry, options: SourceOptions, name: str = "latest") -> Iterator[OciSource]:
    mark = "@" if name.startswith("sha256:") else ":"
    with closing(open_oci(parse_reference(f"oci://{registry.address}/{REPOSITORY}{mark}{name}"), options)) as source:
        yield source


def put(registry: FakeRegistry, *layers: FakeLayer, tag: str = "latest") -> str:
    for layer in layers:
        registry.put_blob(layer.data)
    return registry.put_manifest(manifest_of(layers), tag=tag)


def raw(path: str, data: bytes) -> FakeLayer:
    return FakeLayer(RAW, data, {"org.cncf.model.filepath": path})


def contents(source: OciSource) -> dict[str, bytes]:
    return {file.path: read_exactly(source, file, 0, file.size_bytes) for file in source.files}


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def proven(proof: Proof, found: Mapping[str, bytes]) -> bytes:
    return b"".join(
        part.data if isinstance(part, Literal) else found[part.path][part.begin : part.end] for part in proof.parts
    )


def file_of(source: OciSource, path: str) -> SourceFile:
    return next(file for file in source.files if file.path == path)


@pytest.mark.parametrize("form", list(Form))
def test_every_form_of_artifact_gives_the_files_and_proofs_of_all_of_them(
    registry: FakeRegistry, options: SourceOptions, model: Path, form: Form
) -> None:
    digest = push(registry.address, REPOSITORY, layers_of(model, form))
    with opened(registry, options) as source:
        found = contents(source)
        assert found == files_of(model)
        assert source.revision == digest
        assert source.pinned_index is None
        assert {path for proof in source.proofs for path in proof.paths} == set(found)
        for proof in source.proofs:
            assert hashlib.sha256(proven(proof, found)).hexdigest() == proof.digest.hex
    assert list(options.spool.iterdir()) == []


@pytest.mark.parametrize("form", list(Form))
def test_any_range_of_a_file_can_be_read(
    registry: FakeRegistry, options: SourceOptions, model: Path, form: Form
) -> None:
    push(registry.address, REPOSITORY, layers_of(model, form))
    with opened(registry, options) as source:
        for path, data in files_of(model).items():
            file = file_of(source, path)
            for begin, end in ((0, 1), (5, len(data) // 2), (len(data) - 7, len(data)), (3, 3), (len(data), len(data))):
                assert read_exactly(source, file, begin, end) == data[begin:end]


@pytest.mark.parametrize("form", list(Form))
def test_a_registry_that_ignores_ranges_serves_every_form(
    registry: FakeRegistry, options: SourceOptions, model: Path, form: Form
) -> None:
    push(registry.address, REPOSITORY, layers_of(model, form))
    registry.ignores_ranges = True
    with opened(registry, options) as source:
        assert contents(source) == files_of(model)
        data = files_of(model)["config.json"]
        assert read_exactly(source, file_of(source, "config.json"), 5, 9) == data[5:9]
        assert {path for proof in source.proofs for path in proof.paths} == set(files_of(model))
    assert list(options.spool.iterdir()) == []


def test_a_registry_that_ignores_ranges_all_of_a_sudden_gives_the_right_part_of_a_tar(
    registry: FakeRegistry, options: SourceOptions
) -> None:
    put(registry, FakeLayer(TAR, tar_of({"a.bin": bytes(70_000), "b.bin": bytes(range(200)), "c.bin": b"c"}), {}))
    with opened(registry, options) as source:
        registry.ignores_ranges = True
        file = file_of(source, "b.bin")
        with source.read(file, 100, 150) as body:
            assert (body.begin, body.end) == (0, 200)
        assert read_exactly(source, file, 100, 150) == bytes(range(100, 150))
        assert read_exactly(source, file, 0, 200) == bytes(range(200))


def test_a_raw_layer_is_pinned_by_its_digest(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("model.safetensors", b"weights"))
    digest = Sha256(hashlib.sha256(b"weights").hexdigest())
    with opened(registry, options) as source:
        assert source.files == (SourceFile("model.safetensors", 7, str(digest), digest),)
        assert source.proofs == (Proof(digest, (FileRange("model.safetensors", 0, 7),)),)


def test_the_seek_index_in_the_artifact_is_pinned(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("model.safetensors", b"weights"), seek_index_layer(b'{"format":1}'))
    with opened(registry, options) as source:
        assert source.pinned_index == "headrace.seekindex.json"
        assert contents(source)[source.pinned_index] == b'{"format":1}'


def test_weights_in_a_tar_are_not_fetched_when_it_is_opened(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, FakeLayer(TAR, tar_of({"a.safetensors": bytes(1 << 20), "b.safetensors": bytes(1 << 20)}), {}))
    with opened(registry, options) as source:
        asked = [seen.range.removeprefix("bytes=").partition("-") for seen in registry.blob_requests()]
        assert sum(int(last) + 1 - int(first) for first, _dash, last in asked) <= 3 * (64 << 10)
        assert [file.digest for file in source.files] == [None, None]


def test_empty_files_are_read_without_asking(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("empty.json", b""))
    with opened(registry, options) as source:
        assert contents(source) == {"empty.json": b""}
        assert registry.blob_requests() == []


# ----------------------------------------------------------------------------------------------------- manifests


def test_a_model_is_pulled_by_the_digest_of_its_manifest(registry: FakeRegistry, options: SourceOptions) -> None:
    digest = put(registry, raw("a.json", b"old"))
    put(registry, raw("a.json", b"new"))
    with opened(registry, options, digest) as source:
        assert (source.revision, contents(source)) == (digest, {"a.json": b"old"})


def test_a_manifest_with_another_digest_is_refused(registry: FakeRegistry, options: SourceOptions) -> None:
    digest = put(registry, raw("a.json", b"old"), tag="old")
    put(registry, raw("a.json", b"new"))
    registry.manifests[digest] = registry.manifests["latest"]
    with pytest.raises(DigestMismatch, match=digest), opened(registry, options, digest):
        pass


def test_a_manifest_that_is_not_what_its_header_says_is_refused(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", b"x"))
    registry.stated_digest = f"sha256:{0:064x}"
    with pytest.raises(DigestMismatch, match="the manifest has the digest"), opened(registry, options):
        pass
    registry.stated_digest = "sha512:" + "0" * 128
    with opened(registry, options) as source:
        assert len(source.files) == 1


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_leads_to_the_model_in_it(registry: FakeRegistry, options: SourceOptions, media_type: str) -> None:
    digest = put(registry, raw("a.json", b"x"), tag="inner")
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5}
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]}
    registry.put_manifest(index, media_type=media_type)
    with opened(registry, options) as source:
        assert source.revision == digest
    nested = registry.put_manifest(index, tag="inner", media_type=media_type)
    registry.put_manifest({**index, "manifests": [{**entry, "digest": nested}]}, media_type=media_type)
    with pytest.raises(SourceUnusable, match="index in an index"), opened(registry, options):
        pass


def test_of_the_artifacts_in_an_index_the_one_with_a_models_config_is_the_model(
    registry: FakeRegistry, options: SourceOptions
) -> None:
    other = registry.put_manifest(manifest_of([raw("a.json", b"x")]), tag="other")
    layer = raw("b.json", b"y")
    registry.put_blob(layer.data)
    kind = "application/vnd.cncf.model.manifest.v1+json"
    digest = registry.put_manifest(manifest_of([layer], artifact_type=kind), tag="model")
    entries = [{"mediaType": OCI_MANIFEST, "digest": one, "size": 5} for one in (other, digest)]
    registry.put_manifest({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, media_type=OCI_INDEX)
    with opened(registry, options) as source:
        assert (source.revision, contents(source)) == (digest, {"b.json": b"y"})


def test_a_manifest_is_bounded(registry: FakeRegistry, options: SourceOptions) -> None:
    registry.put_manifest(b" " * (5 << 20))
    with pytest.raises(SourceUnusable, match="larger than"), opened(registry, options):
        pass


def test_what_is_not_there_is_named_as_the_user_named_it(registry: FakeRegistry, options: SourceOptions) -> None:
    reason = f"{registry.address}/{REPOSITORY}:none is not in the registry"
    with pytest.raises(ModelNotFound, match=reason), opened(registry, options, "none"):
        pass


def test_plain_http_is_for_loopback_and_hosts_that_the_operator_named(options: SourceOptions) -> None:
    with pytest.raises(SourceUnavailable, match="registry.invalid"):
        open_oci(parse_reference("oci://registry.invalid:5000/a"), options)


# ---------------------------------------------------------------------------------------------------- bad layers


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([raw("a", b"1"), raw("a", b"2")], "one path"),
        ([raw("a", b"1"), raw("a/b", b"2")], "the path of a directory"),
        ([raw("../a", b"1")], "a file name"),
        ([raw("a", b"1"), FakeLayer(TAR, tar_of({"a": b"2"}), {})], "one path"),
        ([raw("a", b"1"), FakeLayer(GZIP, gzip.compress(tar_of({"a": b"2"})), {})], "one path"),
        ([FakeLayer(TAR, tar_of({"../a": b"2"}), {})], "a file name"),
        ([FakeLayer(GZIP, gzip.compress(tar_of({"/a": b"2"})), {})], "a file name"),
        ([FakeLayer(GZIP, tar_of({"a": b"2"}), {})], "cannot be decompressed"),
        ([FakeLayer(GZIP, gzip.compress(tar_of({"a": b"2"}))[:-9], {})], "cannot be decompressed"),
        ([FakeLayer(GZIP, gzip.compress(b"x" * 600), {})], "no tar"),
        ([FakeLayer(TAR, b"x" * 600, {})], "no tar"),
    ],
)
def test_a_model_with_a_bad_layer_is_refused_and_leaves_nothing(
    registry: FakeRegistry, options: SourceOptions, layers: list[FakeLayer], reason: str
) -> None:
    put(registry, *layers)
    with pytest.raises(UnsafeModel, match=reason), opened(registry, options):
        pass
    assert list(options.spool.iterdir()) == []


def test_a_link_in_a_tar_refuses_the_model(registry: FakeRegistry, options: SourceOptions) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    put(registry, FakeLayer(TAR, buffer.getvalue(), {}))
    with pytest.raises(UnsafeModel, match="symbolic link"), opened(registry, options):
        pass


def test_a_layer_that_unpacks_without_end_is_refused_and_leaves_nothing(
    registry: FakeRegistry, options: SourceOptions
) -> None:
    put(registry, FakeLayer(GZIP, gzip.compress(bytes(40 << 20)), {}))
    with pytest.raises(UnsafeModel, match="1000 times"), opened(registry, options):
        pass
    assert list(options.spool.iterdir()) == []


def test_a_compressed_layer_with_other_bytes_is_refused_before_it_is_unpacked(
    registry: FakeRegistry, options: SourceOptions
) -> None:
    layer = FakeLayer(GZIP, gzip.compress(tar_of({"a": b"1"})), {})
    put(registry, layer)
    digest = str(layer.descriptor["digest"])
    registry.blobs[digest] = layer.data[:-1] + bytes([layer.data[-1] ^ 1])
    with pytest.raises(DigestMismatch, match=digest), opened(registry, options):
        pass
    assert list(options.spool.iterdir()) == []


def test_a_layer_compressed_with_zstd_is_unpacked_and_checked(registry: FakeRegistry, options: SourceOptions) -> None:
    data = bytes(range(256)) * 4000
    packed = zstandard.ZstdCompressor().compress(tar_of({"model.safetensors": data}))
    put(registry, FakeLayer(ZSTD, packed, {}))
    with opened(registry, options) as source:
        (file,) = source.files
        assert (file.path, file.size_bytes) == ("model.safetensors", len(data))
        assert file.digest == Sha256(hashlib.sha256(data).hexdigest())
        assert read_exactly(source, file, 1000, 5000) == data[1000:5000]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "cannot be decompressed"),
        (zstandard.ZstdCompressor().compress(tar_of({"a": os.urandom(300_000)}))[:-100_000], "tar"),
    ],
    ids=["garbage", "cut off"],
)
def test_a_broken_zstd_layer_is_refused_and_leaves_nothing(
    registry: FakeRegistry, options: SourceOptions, data: bytes, reason: str
) -> None:
    put(registry, FakeLayer(ZSTD, data, {}))
    with pytest.raises(UnsafeModel, match=reason), opened(registry, options):
        pass
    assert list(options.spool.iterdir()) == []


# ------------------------------------------------------------------------------------------------- broken answers


def test_a_broken_connection_can_be_tried_again(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", bytes(range(200))))
    with opened(registry, options) as source:
        (file,) = source.files
        registry.breaks_after = 50
        with pytest.raises(SourceUnavailable):
            read_exactly(source, file, 0, 200)
        assert read_exactly(source, file, 0, 200) == bytes(range(200))


def test_a_compressed_layer_goes_on_where_it_broke_off(registry: FakeRegistry, options: SourceOptions) -> None:
    data = os.urandom(50_000)
    layer = FakeLayer(GZIP, gzip.compress(tar_of({"a": data})), {})
    put(registry, layer)
    registry.breaks_after = 20_000
    with pytest.raises(SourceUnavailable), opened(registry, options):
        pass
    assert registry.breaks_after is None
    (part,) = options.spool.iterdir()
    kept = part.stat().st_size
    with opened(registry, options) as source:
        assert contents(source) == {"a": data}
    assert registry.blob_requests()[-1].range == f"bytes={kept}-{len(layer.data) - 1}"
    assert list(options.spool.iterdir()) == []


def test_where_ranges_are_ignored_a_broken_layer_comes_once_more(
    registry: FakeRegistry, options: SourceOptions
) -> None:
    layer = FakeLayer(GZIP, gzip.compress(tar_of({"a": os.urandom(5_000)})), {})
    put(registry, layer)
    (options.spool / f"{layer.descriptor['digest']}.part".removeprefix("sha256:")).write_bytes(layer.data[:2_000])
    registry.ignores_ranges = True
    with opened(registry, options) as source:
        assert [file.path for file in source.files] == ["a"]


def test_bytes_of_a_layer_that_are_kept_are_told_and_those_that_come_again_are_not(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    layer = ModelLayer(Sha256(hashlib.sha256(data).hexdigest()), len(data), Packing.TAR_GZIP)
    source = MemorySource({"layer": data})
    source.breaks_after, source.ignores_ranges = 2 << 20, True
    told: list[int] = []
    spool = LayerSpool(tmp_path, on_kept=lambda: told.append(source.bytes_read))
    for _time in range(2):
        with pytest.raises(SourceUnavailable):
            spool.fetch(layer, lambda begin, end: source.read(source.files[0], begin, end))
    assert told == [1 << 20, 2 << 20], "the second answer brings the same again"
    source.breaks_after = None
    spool.fetch(layer, lambda begin, end: source.read(source.files[0], begin, end))
    assert len(told) == 3
    spool.close()


def test_a_full_disk_leaves_nothing(options: SourceOptions) -> None:
    layer = ModelLayer(Sha256("0" * 64), 5, Packing.TAR_GZIP)
    spool = LayerSpool(options.spool)

    @contextmanager
    def read_blob(_begin: int, _end: int) -> Iterator[Body]:
        assert list(options.spool.iterdir()) != []
        raise OSError(errno.ENOSPC, "full")
        yield

    with pytest.raises(NoSpace, match="no space left"):
        spool.fetch(layer, read_blob)
    assert list(options.spool.iterdir()) == []


def test_links_in_the_spool_are_not_followed(registry: FakeRegistry, options: SourceOptions, tmp_path: Path) -> None:
    layer = FakeLayer(GZIP, gzip.compress(tar_of({"a": b"1"})), {})
    put(registry, layer)
    (tmp_path / "other").write_bytes(b"somebody's")
    (options.spool / f"{layer.descriptor['digest']}.tar".removeprefix("sha256:")).symlink_to(tmp_path / "other")
    with pytest.raises(StoreUnusable, match="cannot be unpacked"), opened(registry, options):
        pass
    assert (tmp_path / "other").read_bytes() == b"somebody's"
    assert list(options.spool.iterdir()) == []


def test_a_spool_that_is_gone_is_an_error_of_ours(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, FakeLayer(GZIP, gzip.compress(tar_of({"a": b"1"})), {}))
    options.spool.rmdir()
    with pytest.raises(StoreUnusable, match="cannot be unpacked"), opened(registry, options):
        pass


def test_reads_after_the_end_of_the_spool_fail(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, FakeLayer(GZIP, gzip.compress(tar_of({"a": b"1"})), {}), raw("b", b"2"))
    with opened(registry, options) as source:
        files = source.files
    for file in files:
        with pytest.raises(SourceUnavailable):
            read_exactly(source, file, 0, 1)


def test_a_file_of_another_revision_is_not_read(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", b"12"))
    with opened(registry, options) as source:
        with pytest.raises(SourceChanged):
            read_exactly(source, SourceFile("a.json", 2, f"sha256:{0:064x}"), 0, 1)
        with pytest.raises(ModelNotFound):
            read_exactly(source, SourceFile("b.json", 2), 0, 1)


def test_a_blob_of_another_size_is_not_read(registry: FakeRegistry, options: SourceOptions) -> None:
    layer = raw("a.json", b"12")
    put(registry, layer)
    registry.blobs[str(layer.descriptor["digest"])] = b"123"
    with opened(registry, options) as source, pytest.raises(SourceChanged):
        read_exactly(source, source.files[0], 0, 1)


# ----------------------------------------------------------------------------------------------------- credentials


def test_a_redirect_to_another_host_gets_no_credentials(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", b"12"), FakeLayer(TAR, tar_of({"b.json": b"34"}), {}))
    registry.login, registry.redirects_blobs = Login.BEARER, True
    with opened(registry, options) as source:
        assert contents(source) == {"a.json": b"12", "b.json": b"34"}
    stored = [seen for seen in registry.seen if seen.path.startswith("/storage/")]
    assert {seen.host for seen in stored} == {registry.other_host}
    assert {seen.authorization for seen in stored} == {""}


def test_a_token_that_expires_under_way_is_renewed(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", b"12"))
    registry.login = Login.BEARER
    with opened(registry, options) as source:
        registry.tokens.clear()
        assert contents(source) == {"a.json": b"12"}
        assert contents(source) == {"a.json": b"12"}
        assert len(registry.token_requests()) == 2


def test_credentials_come_from_dockers_config(registry: FakeRegistry, options: SourceOptions, tmp_path: Path) -> None:
    put(registry, raw("a.json", b"12"))
    registry.login, registry.users = Login.BASIC, {"user": SECRET}
    (tmp_path / ".docker").mkdir()
    auths = {registry.address: {"username": "user", "password": SECRET}}
    (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": auths}))
    with opened(registry, options) as source:
        assert contents(source) == {"a.json": b"12"}


@pytest.mark.parametrize("login", [Login.BASIC, Login.BEARER])
def test_whoever_is_not_let_in_is_told_to_log_in(registry: FakeRegistry, options: SourceOptions, login: Login) -> None:
    put(registry, raw("a.json", b"12"))
    registry.login, registry.users = login, {"user": SECRET}
    with pytest.raises(SourceDenied, match=f"docker login {registry.address}"), opened(registry, options):
        pass


def test_a_token_service_elsewhere_in_the_clear_is_not_asked(registry: FakeRegistry, options: SourceOptions) -> None:
    put(registry, raw("a.json", b"12"))
    registry.login, registry.realm = Login.BEARER, "http://auth.invalid/token"
    with pytest.raises(SourceUnusable, match="plain HTTP to auth.invalid"), opened(registry, options):
        pass


# ----------------------------------------------------------------------------------------------------------- parts


def test_a_spool_that_lost_bytes_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"123")
    body = FileBody(tmp_path / "archive", 1, 0, 5)
    with closing(body):
        assert body.read(10) == b"23"
        with pytest.raises(SourceUnavailable, match="lost"):
            body.read(10)


def test_closing_a_spool_twice_is_fine(tmp_path: Path) -> None:
    spool = LayerSpool(tmp_path)
    data = tar_of({"a": b"1"})
    layer = ModelLayer(Sha256(hashlib.sha256(data).hexdigest()), len(data), Packing.TAR)
    (tmp_path / f"{layer.digest.hex}.part").write_bytes(data)
    spool.fetch(layer, lambda _begin, _end: pytest.fail("all of it is there"))
    assert [file.member.path for file in spool.unpack(layer)] == ["a"]
    spool.close()
    spool.close()
    assert list(tmp_path.iterdir()) == []
