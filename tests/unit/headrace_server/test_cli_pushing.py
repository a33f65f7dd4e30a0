"""What `headrace push` understands and says."""

from pathlib import Path

import pytest

from headrace_models import ModelNotFound, Trust
from headrace_models.digest import Sha256
from headrace_models.push.blob_upload import Outcome
from headrace_models.push.formats import ArtifactFormat
from headrace_models.push.session import Pushed
from headrace_server.cli.pushing import PushCommand, contents_named, destination_of, document, reporter, summary
from headrace_server.errors import UsageError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings
from tests.fakes.checkpoints import write_checkpoint

DIGEST = Sha256("ab" * 32)
COMMAND = PushCommand("./m", "oci://r.example/team/m:v1", ArtifactFormat.DOCKER)
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(100)


def pushed(**blob_bytes: int) -> Pushed:
    outcomes = {Outcome[name.upper()]: size for name, size in blob_bytes.items()}
    return Pushed(DIGEST, Trust.CHUNK, 7, 272_600_000, 50_000, outcomes, 2.34)


def settings_of(folder: Path, text: str = "") -> Settings:
    path = folder / "headrace.yaml"
    path.write_text(f"cache: {{dir: {folder / 'cache'}}}\n{text}")
    return load_settings(config=path)


@pytest.mark.parametrize("text", ["oci://r.example/team/m", "oci://r.example/team/m:latest"])
def test_a_destination_without_a_tag_is_the_latest(text: str) -> None:
    found = destination_of(text)
    assert (found.registry, found.repository, found.tag) == ("r.example", "team/m", "latest")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://org/name", "models are pushed to registries"),
        ("/tmp", "models are pushed to registries"),
        ("registry.example/m:v1", "destination 'registry.example/m:v1'"),
        (f"oci://r.example/m@sha256:{'0' * 64}", "a digest follows from what is pushed"),
        ("oci://r.example/m:a b", "not a tag"),
    ],
)
def test_what_is_no_tag_of_a_repository_is_no_destination(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("'", ".")):
        destination_of(text)


def test_the_last_line_is_the_reference_by_itself() -> None:
    told, reference = summary(pushed(uploaded=272_650_000), destination_of(COMMAND.destination)).splitlines()
    assert told == "pushed 272.6 MB in 7 files, seek index 50.0 kB, trust chunk, 272.6 MB sent in 2.3 s"
    assert reference == f"oci://r.example/team/m:v1@{DIGEST}"
    assert "nothing had to be sent" in summary(pushed(present=5), destination_of(COMMAND.destination))


def test_machines_are_told_how_the_bytes_came_there() -> None:
    told = document(pushed(uploaded=1, mounted=2, present=3), COMMAND, destination_of(COMMAND.destination))
    assert told == {
        "source": "./m",
        "reference": f"oci://r.example/team/m:v1@{DIGEST}",
        "digest": str(DIGEST),
        "format": "docker",
        "trust": "chunk",
        "num_files": 7,
        "total_bytes": 272_600_000,
        "index_bytes": 50_000,
        "sent_bytes": 1,
        "mounted_bytes": 2,
        "present_bytes": 3,
        "seconds": 2.34,
    }


def test_a_configured_directory_is_pushed_by_its_id(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", num_layers=1, hidden=16)
    settings = settings_of(tmp_path, f"models: [{{id: mine, aliases: [my], source: {tmp_path / 'm'}}}]")
    for name in ("mine", "my", str(tmp_path / "m")):
        with contents_named(name, settings) as contents:
            assert "model.safetensors" in {file.path for file in contents.files}


def test_a_gguf_file_is_pushed_by_its_path_relative_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUF)
    monkeypatch.chdir(tmp_path)
    for name in ("a.gguf", "./a.gguf", str(tmp_path / "a.gguf"), f"file://{tmp_path}/a.gguf"):
        with contents_named(name, settings_of(tmp_path)) as contents:
            assert [file.path for file in contents.files] == ["a.gguf"]


def test_a_model_without_weights_here_is_a_usage_error_and_one_that_is_absent_is_not(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "models: [{id: words, engine: synthetic}]")
    with pytest.raises(UsageError, match="no weights here"), contents_named("words", settings):
        pass
    for name in ("absent", "hf://org/absent", "oci://r.example/absent"):
        with pytest.raises(ModelNotFound, match="headrace pull"), contents_named(name, settings):
            pass
    assert not (tmp_path / "cache").exists()


def test_progress_has_a_rate_and_an_end_for_each_pass() -> None:
    shown: list[tuple[int, int, float, float | None]] = []

    class Display:
        def show(
            self, done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None
        ) -> None:
            shown.append((done_bytes, total_bytes, rate, eta_seconds))

    now = 0.0
    report = reporter(Display(), clock=lambda: now)  # type: ignore[arg-type]
    now = 2.0
    report.on_hashed(100, 400)
    now = 4.0
    report.on_sent(200, 400)
    assert shown == [(100, 400, 50.0, 6.0), (200, 400, 50.0, 4.0)]
