"""Images in every form that they come in: what is read of them, and what is said of damaged ones."""

import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_models.errors import DigestMismatch, ModelError, ModelNotFound
from headrace_server.image import tar_files
from headrace_server.image.choosing import parse_platform
from headrace_server.image.description import Compression, Image, LayerKind, LazyIndex
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.layers import gzip_unpacked_bytes
from headrace_server.image.reading import read_image
from tests.fakes.images import (
    OCI_CONFIG,
    FakeImage,
    FakeImageLayer,
    descriptor,
    digest_of,
    index_of,
    put_blob,
    put_in_registry,
    tar_up,
    tar_with,
    write_docker_archive,
    write_index,
    write_layout,
)
from tests.fakes.registry import FakeRegistry, Login, running_registry

NOISE = random.Random(1).randbytes(20_000)
BASE = FakeImageLayer(tar_with("etc/os", b"x" * 50_000), created_by="# debian.sh")
MODEL = FakeImageLayer(tar_with("m.safetensors", NOISE), created_by="/bin/sh -c #(nop) COPY m.safetensors /models/")
APP = FakeImageLayer(tar_with("main.py", b"print(1)"))
IMAGE = FakeImage([BASE, MODEL, APP])
ARM = FakeImage([BASE, APP], architecture="arm64")


def read(text: str | Path, platform: str | None = None, environ: dict[str, str] | None = None) -> Image:
    wanted = parse_platform(platform) if platform else None
    return read_image(str(text), platform=wanted, environ=environ or {}, insecure_hosts=frozenset())


def unreadable(text: str | Path, reason: str, platform: str | None = None) -> None:
    with pytest.raises(ImageUnreadable, match=reason) as raised:
        read(text, platform)
    assert "\n" not in str(raised.value)


@pytest.fixture(autouse=True)
def amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running_registry() as running:
        yield running


def stored(directory: Path, form: str) -> str:
    """The image in one form; the text that names it."""
    match form:
        case "layout":
            return f"oci:{write_layout(directory / 'layout', {'v1': IMAGE})}:v1"
        case "directory":
            return str(write_layout(directory / "layout", {"": IMAGE}))
        case "oci archive":
            return str(tar_up(write_layout(directory / "layout", {"v1": IMAGE}), directory / "oci.tar"))
        case _:
            links = form == "docker archive with links"
            return str(write_docker_archive(directory / "docker.tar", {"app:v1": IMAGE}, links=links))


@pytest.mark.parametrize("form", ["layout", "directory", "oci archive", "docker archive", "docker archive with links"])
def test_an_image_is_described_from_every_form(tmp_path: Path, form: str) -> None:
    image = read(stored(tmp_path, form))
    is_saved = form.startswith("docker")
    assert str(image.platform) == "linux/amd64"
    assert (image.digest is None, image.is_as_pulled) == (is_saved, not is_saved)
    assert [layer.kind for layer in image.layers] == [LayerKind.BASE, LayerKind.MODEL, LayerKind.APP]
    assert [layer.created_by for layer in image.layers] == [layer.created_by for layer in IMAGE.layers]
    assert [layer.unpacked_bytes for layer in image.layers] == [len(layer.tar) for layer in IMAGE.layers]
    expected = [layer.tar if is_saved else layer.stored for layer in IMAGE.layers]
    assert [layer.size_bytes for layer in image.layers] == [len(data) for data in expected]
    assert [str(layer.digest) for layer in image.layers] == [digest_of(data) for data in expected]
    assert image.unpacked_bytes == sum(len(layer.tar) for layer in IMAGE.layers)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what this process reads as Linux tells it")
@pytest.mark.parametrize("form", ["layout", "oci archive", "docker archive"])
def test_layers_are_not_read(tmp_path: Path, form: str) -> None:
    large = FakeImage([FakeImageLayer(random.Random(2).randbytes(5_000_000), "none"), APP])
    layout = write_layout(tmp_path / "layout", {"v1": large})
    archives = {
        "layout": lambda: layout,
        "oci archive": lambda: tar_up(layout, tmp_path / "oci.tar"),
        "docker archive": lambda: write_docker_archive(tmp_path / "docker.tar", {"v1": large}),
    }
    path = archives[form]()
    before = num_bytes_read()
    assert read(path).size_bytes > 5_000_000
    assert num_bytes_read() - before < 500_000


def num_bytes_read() -> int:
    """By this process, from anywhere."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_nothing_is_written_next_to_an_archive(tmp_path: Path) -> None:
    name = stored(tmp_path, "docker archive")
    before = sorted(tmp_path.rglob("*"))
    read(name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_layers_compression_is_what_its_media_type_says(tmp_path: Path, compression: str) -> None:
    image = FakeImage([FakeImageLayer(BASE.tar, compression)])
    (layer,) = read(write_layout(tmp_path, {"": image})).layers
    assert layer.compression is Compression(compression)
    assert layer.unpacked_bytes == (None if compression == "zstd" else len(BASE.tar))


def test_a_history_that_does_not_fit_the_layers_says_nothing(tmp_path: Path) -> None:
    class Squashed(FakeImage):
        @property
        def config(self) -> bytes:
            document = json.loads(FakeImage.config.fget(self))  # type: ignore[attr-defined]
            return json.dumps({**document, "history": document["history"][:2]}).encode()

    found = read(write_layout(tmp_path, {"": Squashed(IMAGE.layers)})).layers
    assert [(layer.created_by, layer.kind) for layer in found] == [
        ("", LayerKind.BASE),
        ("", LayerKind.OTHER),
        ("", LayerKind.OTHER),
    ]


class TestLazyIndexes:
    @pytest.mark.parametrize("prefix", ["io.github.containers", "io.containers"])
    def test_estargz_and_zstd_chunked_are_in_the_layers_annotations(self, tmp_path: Path, prefix: str) -> None:
        toc = {
            "containerd.io/snapshot/stargz/toc.digest": "sha256:x",
            "io.containers.estargz.uncompressed-size": "81391104",
        }
        chunked = {f"{prefix}.zstd-chunked.manifest-checksum": "sha256:y"}
        layers = [FakeImageLayer(BASE.tar, annotations=toc), FakeImageLayer(APP.tar, "zstd", annotations=chunked), APP]
        found = read(write_layout(tmp_path, {"": FakeImage(layers)})).layers
        assert [layer.lazy_index for layer in found] == [LazyIndex.ESTARGZ, LazyIndex.ZSTD_CHUNKED, None]
        assert found[0].unpacked_bytes == 81391104

    def test_a_stated_size_that_is_no_number_says_nothing(self, tmp_path: Path) -> None:
        toc = {"containerd.io/snapshot/stargz/toc.digest": "x", "io.containers.estargz.uncompressed-size": "many"}
        layer = FakeImageLayer(BASE.tar, annotations=toc)
        assert read(write_layout(tmp_path, {"": FakeImage([layer])})).unpacked_bytes is None

    def test_soci_indexes_the_images_large_layers(self, tmp_path: Path) -> None:
        large = FakeImageLayer(bytes(11 << 20), "none")
        soci = FakeImage([large, APP], annotations={"com.amazon.soci.index-digest": "sha256:x"})
        found = read(write_layout(tmp_path, {"": soci})).layers
        assert [layer.lazy_index for layer in found] == [LazyIndex.SOCI, None]


@pytest.mark.parametrize(
    ("stated", "size_bytes", "unpacked"),
    [(5000, 100, 5000), (100, 110, 100), (100, 5000, None), (2**31, (1 << 30) + 1, None), (2**31, 1 << 30, 2**31)],
)
def test_a_gzip_trailer_is_believed_where_it_can_be_right(stated: int, size_bytes: int, unpacked: int | None) -> None:
    assert gzip_unpacked_bytes(stated.to_bytes(4, "little"), size_bytes) == unpacked


def test_a_trailer_that_is_cut_off_says_nothing() -> None:
    assert gzip_unpacked_bytes(b"\1\2", 1) is None


class TestChoosing:
    def test_several_tags_have_to_be_told_apart(self, tmp_path: Path) -> None:
        layout = write_layout(tmp_path, {"v1": IMAGE, "v2": ARM})
        assert len(read(f"oci:{layout}:v1").layers) == 3
        unreadable(layout, r"has 2 images; name one as oci:.*:TAG \(v1, v2\)")
        unreadable(f"oci:{layout}:v3", "no image called v3: it has v1, v2")

    def test_several_saved_images_have_to_be_told_apart(self, tmp_path: Path) -> None:
        archive = write_docker_archive(tmp_path / "d.tar", {"a:1": IMAGE, "b:1": ARM})
        assert len(read(f"docker-archive:{archive}:a:1").layers) == 3
        unreadable(archive, "has 2 images; name one as docker-archive:.*:TAG .a:1, b:1.")
        unreadable(f"docker-archive:{archive}:c:1", "no image called c:1: it has a:1, b:1")

    @pytest.mark.parametrize(("platform", "num_layers"), [(None, 3), ("linux/amd64", 3), ("linux/arm64", 2)])
    def test_an_index_gives_the_image_for_the_platform(
        self, tmp_path: Path, platform: str | None, num_layers: int
    ) -> None:
        assert len(read(self.multi_platform(tmp_path), platform).layers) == num_layers

    def test_a_platform_that_is_not_there_is_named_with_those_that_are(self, tmp_path: Path) -> None:
        unreadable(self.multi_platform(tmp_path), "no image for linux/s390x .*linux/amd64, linux/arm64", "linux/s390x")

    def test_an_only_image_is_held_against_the_platform_that_was_asked_for(self, tmp_path: Path) -> None:
        layout = write_layout(tmp_path / "l", {"": ARM})
        assert str(read(layout).platform) == "linux/arm64"
        unreadable(layout, "is for linux/arm64 and not for linux/amd64", "linux/amd64")
        archive = write_docker_archive(tmp_path / "d.tar", {"": ARM})
        unreadable(archive, "is for linux/arm64 and not for linux/amd64", "linux/amd64")

    def test_what_stands_beside_an_only_image_is_no_other_image(self, tmp_path: Path) -> None:
        for data in ARM.blobs:
            put_blob(tmp_path, data)
        soci = {
            **descriptor(b"{}", "application/vnd.oci.image.manifest.v1+json"),
            "artifactType": "application/vnd.amazon.soci.index.v2+json",
        }
        index = index_of([ARM], soci)
        put_blob(tmp_path, index)
        entry = descriptor(index, "application/vnd.oci.image.index.v1+json")
        write_index(tmp_path, {"schemaVersion": 2, "manifests": [entry]})
        assert str(read(tmp_path).platform) == "linux/arm64"

    @staticmethod
    def multi_platform(directory: Path) -> Path:
        """As buildx writes it: an index in the layout's, with an attestation and a SOCI index beside the images."""
        for image in (IMAGE, ARM):
            for data in image.blobs:
                put_blob(directory, data)
        attestation = {
            **descriptor(IMAGE.manifest, "application/vnd.oci.image.manifest.v1+json"),
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        }
        soci = {
            **descriptor(b"{}", "application/vnd.oci.image.manifest.v1+json"),
            "artifactType": "application/vnd.amazon.soci.index.v2+json",
        }
        index = index_of([IMAGE, ARM], attestation, soci)
        put_blob(directory, index)
        entry = descriptor(index, "application/vnd.oci.image.index.v1+json")
        write_index(directory, {"schemaVersion": 2, "manifests": [entry]})
        return directory


class TestDamagedLayouts:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Path:
        return write_layout(tmp_path / "layout", {"": IMAGE})

    @staticmethod
    def blob(layout: Path, data: bytes) -> Path:
        return layout / "blobs/sha256" / digest_of(data).removeprefix("sha256:")

    def test_a_missing_layer_is_named(self, layout: Path) -> None:
        self.blob(layout, APP.stored).unlink()
        unreadable(layout, f"layer blobs/sha256/{digest_of(APP.stored)[7:]} is missing")

    def test_a_layer_that_was_cut_off_is_named(self, layout: Path) -> None:
        self.blob(layout, APP.stored).write_bytes(APP.stored[:-1])
        unreadable(layout, f"has {len(APP.stored) - 1} bytes, not {len(APP.stored)}")

    @pytest.mark.parametrize("which", ["manifest", "config"])
    def test_a_document_that_differs_from_its_digest_is_damage(self, layout: Path, which: str) -> None:
        data: bytes = getattr(IMAGE, which)
        self.blob(layout, data).write_bytes(data.replace(b"linux", b"minix") + b" ")
        unreadable(layout, f"{digest_of(data)[7:]} has the digest sha256:.*: the image is damaged")

    def test_a_missing_manifest_is_named(self, layout: Path) -> None:
        self.blob(layout, IMAGE.manifest).unlink()
        unreadable(layout, f"{digest_of(IMAGE.manifest)[7:]} is missing")

    @pytest.mark.parametrize(
        ("index", "reason"),
        [
            (b"{", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[]", "not a JSON object"),
            (b'{"schemaVersion": 1}', "not of schema version 2"),
            (b'{"schemaVersion": 2}', "not an image manifest or index"),
            (b'{"schemaVersion": 2, "manifests": 7}', "no list"),
            (b'{"schemaVersion": 2, "manifests": [7]}', "malformed descriptor"),
            (b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:x", "size": 1}]}', "cannot be checked"),
            (b'{"schemaVersion": 2, "manifests": [{"digest": "sha512:x", "size": true}]}', "malformed descriptor"),
            (b'{"schemaVersion": 2, "manifests": []}', "0 images|no image"),
        ],
    )
    def test_a_broken_index_is_one_line(self, layout: Path, index: bytes, reason: str) -> None:
        (layout / "index.json").write_bytes(index)
        unreadable(layout, reason)

    def test_an_index_that_names_itself_ends(self, layout: Path) -> None:
        entry = {"mediaType": "application/vnd.oci.image.index.v1+json"}
        innermost = index_of([IMAGE])
        for _ in range(8):
            put_blob(layout, innermost)
            innermost = json.dumps(
                {"schemaVersion": 2, "manifests": [{**descriptor(innermost, entry["mediaType"])}]}
            ).encode()
        (layout / "index.json").write_bytes(innermost)
        unreadable(layout, "nested too deeply")

    def test_a_large_document_is_not_read(self, layout: Path) -> None:
        (layout / "index.json").write_bytes(b" " * (5 << 20))
        unreadable(layout, "too many to be one of an image's documents")

    def test_a_layout_needs_its_marker(self, layout: Path) -> None:
        (layout / "oci-layout").unlink()
        unreadable(layout, "no file called oci-layout")

    def test_a_configuration_of_another_image_is_seen(self, tmp_path: Path) -> None:
        class Mixed(FakeImage):
            @property
            def config(self) -> bytes:
                return ARM.config

        unreadable(write_layout(tmp_path, {"": Mixed(IMAGE.layers)}), "configuration has 2 layers and the manifest 3")


class TestWhatIsNoImage:
    @pytest.mark.parametrize(
        "kind", ["application/vnd.docker.ai.model.config.v0.1+json", "application/vnd.cncf.model.config.v1+json"]
    )
    def test_a_model_is_told_from_an_image(self, tmp_path: Path, kind: str) -> None:
        model = FakeImage([MODEL], config_type=kind)
        unreadable(write_layout(tmp_path, {"": model}), "this is a model .* headrace index show oci://")

    def test_other_artifacts_are_named_by_their_type(self, tmp_path: Path) -> None:
        chart = FakeImage([APP], config_type="application/vnd.cncf.helm.config.v1+json")
        unreadable(write_layout(tmp_path, {"": chart}), "artifact of type 'application/vnd.cncf.helm")

    def test_a_layer_of_another_kind_is_named(self, tmp_path: Path) -> None:
        class Odd(FakeImageLayer):
            @property
            def media_type(self) -> str:
                return "application/octet-stream"

        unreadable(write_layout(tmp_path, {"": FakeImage([Odd(APP.tar)])}), "not a layer of a container image")

    def test_a_model_directory_is_told_from_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        unreadable(tmp_path, "is a model, not a container image: headrace index show")

    def test_weights_are_told_from_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_bytes(b"x")
        unreadable(tmp_path / "m.safetensors", "is a model's weights")

    def test_other_directories_and_files_are_neither(self, tmp_path: Path) -> None:
        unreadable(tmp_path, "neither index.json .* nor manifest.json")
        unreadable(tmp_path / "absent", "cannot be read: No such file")
        (tmp_path / "x.tar").write_bytes(b"not a tar")
        unreadable(tmp_path / "x.tar", "not a tar, or cut off")
        with tarfile.open(tmp_path / "y.tar", "w") as tar:
            tar.add(tmp_path / "x.tar", "x")
        unreadable(tmp_path / "y.tar", "neither index.json .* nor manifest.json")

    def test_an_archive_that_is_compressed_as_a_whole_says_so(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "image.tar.gz", "w:gz") as tar:
            tar.add(Path(__file__), "x")
        unreadable(tmp_path / "image.tar.gz", "decompress it first")

    def test_an_archive_of_too_many_files_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tar_files, "MAX_MEMBERS", 3)
        unreadable(stored(tmp_path, "oci archive"), "more than 3 files")


class TestDamagedArchives:
    @pytest.mark.parametrize(
        ("listed", "reason"),
        [
            (b"{", "not JSON"),
            (b"{}", "not a list of images"),
            (b"[]", "has no image"),
            (b'[{"Config": "c"}]', "without Config and Layers"),
            (b'[{"Config": "c", "Layers": [1]}]', "names that are no text"),
            (b'[{"Config": "absent.json", "Layers": []}]', "absent.json is missing"),
        ],
    )
    def test_a_broken_list_is_one_line(self, tmp_path: Path, listed: bytes, reason: str) -> None:
        (tmp_path / "manifest.json").write_bytes(listed)
        with tarfile.open(tmp_path / "image.tar", "w") as tar:
            tar.add(tmp_path / "manifest.json", "manifest.json")
        unreadable(tmp_path / "image.tar", reason)

    def test_links_that_lead_nowhere_or_round_are_missing_layers(self, tmp_path: Path) -> None:
        config = json.dumps({"rootfs": {"diff_ids": [digest_of(b"x")]}}).encode()
        (tmp_path / "c.json").write_bytes(config)
        for target in ("loop", "../../etc/passwd", "absent"):
            (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "c.json", "Layers": ["loop"]}]))
            with tarfile.open(tmp_path / "image.tar", "w") as tar:
                tar.add(tmp_path / "manifest.json", "manifest.json")
                tar.add(tmp_path / "c.json", "c.json")
                info = tarfile.TarInfo("loop")
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
            unreadable(tmp_path / "image.tar", "layer loop is missing")

    def test_a_configuration_that_differs_from_its_name_is_damage(self, tmp_path: Path) -> None:
        archive = write_docker_archive(tmp_path / "d.tar", {"a:1": IMAGE})
        data = archive.read_bytes()
        archive.write_bytes(data.replace(b'"os": "linux"', b'"os": "minix"'))
        unreadable(archive, "has the digest sha256:.*: the image is damaged")

    def test_a_list_with_other_layers_than_the_configuration_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_bytes(b'{"rootfs": {"diff_ids": []}}')
        (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "c.json", "Layers": ["a"]}]))
        with tarfile.open(tmp_path / "image.tar", "w") as tar:
            tar.add(tmp_path / "manifest.json", "manifest.json")
            tar.add(tmp_path / "c.json", "c.json")
        unreadable(tmp_path / "image.tar", "1 layers and the configuration 0")


class TestRegistries:
    def test_only_the_manifest_and_the_configuration_are_fetched(self, registry: FakeRegistry) -> None:
        digest = put_in_registry(registry, IMAGE, tag="v1")
        image = read(f"{registry.address}/team/app:v1")
        assert (str(image.digest), len(image.layers), image.is_as_pulled) == (digest, 3, True)
        assert [seen.path.rpartition("/")[2] for seen in registry.seen] == ["v1", digest_of(IMAGE.config)]

    def test_an_index_costs_one_document_more(self, registry: FakeRegistry) -> None:
        for image in (IMAGE, ARM):
            put_in_registry(registry, image, tag=digest_of(image.manifest))
        index = index_of([IMAGE, ARM])
        registry.put_manifest(index, tag="v1", media_type="application/vnd.oci.image.index.v1+json")
        assert len(read(f"{registry.address}/team/app:v1", "linux/arm64").layers) == 2
        assert len(registry.seen) == 3
        assert len(read(f"{registry.address}/team/app@{digest_of(index)}").layers) == 3

    def test_credentials_come_from_dockers_configuration(self, registry: FakeRegistry, tmp_path: Path) -> None:
        put_in_registry(registry, IMAGE)
        registry.login, registry.users = Login.BASIC, {"me": "secret"}
        auths = {registry.address: {"username": "me", "password": "secret"}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        with pytest.raises(ModelError, match="may not be pulled"):
            read(f"{registry.address}/app")
        assert len(read(f"{registry.address}/app", environ={"DOCKER_CONFIG": str(tmp_path)}).layers) == 3

    def test_a_manifest_that_differs_from_its_digest_is_refused(self, registry: FakeRegistry) -> None:
        put_in_registry(registry, IMAGE)
        registry.stated_digest = digest_of(b"other")
        with pytest.raises(DigestMismatch):
            read(f"{registry.address}/app")

    def test_a_configuration_that_differs_from_its_digest_is_refused(self, registry: FakeRegistry) -> None:
        put_in_registry(registry, IMAGE)
        registry.blobs[digest_of(IMAGE.config)] = IMAGE.config.replace(b"linux", b"minix")
        with pytest.raises(DigestMismatch, match="configuration has the digest"):
            read(f"{registry.address}/app")

    def test_a_configuration_of_an_impossible_size_is_not_fetched(self, registry: FakeRegistry) -> None:
        config = {**descriptor(b"", OCI_CONFIG), "size": 5 << 20}
        registry.put_manifest({"schemaVersion": 2, "config": config, "layers": []})
        unreadable(f"{registry.address}/app", "which it cannot have")

    def test_what_is_not_there_is_not_found(self, registry: FakeRegistry) -> None:
        with pytest.raises(ModelNotFound, match="absent is not in the registry"):
            read(f"{registry.address}/absent")

    def test_a_model_is_told_from_an_image(self, registry: FakeRegistry) -> None:
        put_in_registry(registry, FakeImage([MODEL], config_type="application/vnd.docker.ai.model.config.v0.1+json"))
        unreadable(f"{registry.address}/model", "this is a model")
