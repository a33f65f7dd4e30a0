"""The origin as a Hugging Face hub, asked by huggingface_hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.origin.access import Access
from loadtests.origin.faults import Change, Faults, Redirect, Truncate, When
from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model

huggingface_hub = pytest.importorskip("huggingface_hub")

REPOSITORY = "acme/tiny"


@pytest.fixture(autouse=True)
def quiet_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read at import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = write_tiny_model(tmp_path / "model", num_shards=2)
    (model / "sub").mkdir()
    (model / "sub" / "extra.json").write_text("{}")
    return model


@pytest.fixture
def origin(model: Path) -> Iterator[Origin]:
    with running_origin({REPOSITORY: model, "gpt": model}) as origin:
        yield origin


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def snapshot(origin: Origin, cache: Path, repository: str = REPOSITORY, **options: object) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repository, endpoint=f"{origin.url}/hub", cache_dir=cache, token=False, **options
        )
    )


def api_of(origin: Origin, token: str | bool = False) -> Any:
    return huggingface_hub.HfApi(endpoint=f"{origin.url}/hub", token=token)


@pytest.mark.parametrize("repository", [REPOSITORY, "gpt"])
def test_a_snapshot_is_the_whole_model(origin: Origin, model: Path, tmp_path: Path, repository: str) -> None:
    found = snapshot(origin, tmp_path / "cache", repository)
    assert contents(found) == contents(model)
    assert found.name == api_of(origin).model_info(repository).sha


def test_each_byte_is_sent_once_and_none_the_second_time(origin: Origin, model: Path, tmp_path: Path) -> None:
    snapshot(origin, tmp_path / "cache")
    size = sum(len(data) for data in contents(model).values())
    assert origin.stats().body_bytes("*/resolve/*") == size
    origin.reset()
    snapshot(origin, tmp_path / "cache")
    assert origin.stats().body_bytes("*/resolve/*") == 0


def test_files_are_listed_with_what_git_knows_of_them(origin: Origin, model: Path) -> None:
    files = {file.path: file for file in api_of(origin).list_repo_tree(REPOSITORY, recursive=True)}
    assert set(files) == set(contents(model))
    shard = files["model-00001-of-00002.safetensors"]
    assert (shard.lfs.size, len(shard.lfs.sha256)) == (shard.size, 64)
    assert (files["sub/extra.json"].blob_id, files["sub/extra.json"].lfs) == (
        "9e26dfeeb6e641a33dae4961196235bdb965b21b",  # git hash-object of {}
        None,
    )
    url = huggingface_hub.hf_hub_url(REPOSITORY, shard.path, endpoint=f"{origin.url}/hub")
    metadata = huggingface_hub.get_hf_file_metadata(url, token=False, endpoint=f"{origin.url}/hub")
    assert (metadata.etag, metadata.size) == (shard.lfs.sha256, shard.size)
    (info,) = api_of(origin).get_paths_info(REPOSITORY, ["config.json"])
    assert info.size == (model / "config.json").stat().st_size


def test_a_redirected_file_comes_without_the_token(origin: Origin, model: Path, tmp_path: Path) -> None:
    origin.set_faults(Faults((Redirect(when=When(path="*.safetensors"), status=302),)))
    found = huggingface_hub.hf_hub_download(
        REPOSITORY,
        "model-00001-of-00002.safetensors",
        endpoint=f"{origin.url}/hub",
        cache_dir=tmp_path / "cache",
        token="hf_secret",
    )
    assert Path(found).read_bytes() == (model / "model-00001-of-00002.safetensors").read_bytes()
    assert origin.stats().num_requests("/cdn/hub/*") == 1
    assert origin.stats().authorization_leaks == 0


def test_a_new_commit_has_another_name_and_the_old_one_stays(origin: Origin, model: Path, tmp_path: Path) -> None:
    old = api_of(origin).model_info(REPOSITORY).sha
    other = write_tiny_model(tmp_path / "other", seed=1)
    origin.set_faults(Faults((Change(when=When(most=1), model=REPOSITORY, directory=other),)))
    new = api_of(origin).model_info(REPOSITORY).sha
    assert new != old
    assert contents(snapshot(origin, tmp_path / "cache", revision=old)) == contents(model)
    assert contents(snapshot(origin, tmp_path / "cache")) == contents(other)


def test_what_is_not_there_is_told_apart(origin: Origin) -> None:
    api = api_of(origin)
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("acme/other")
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api.model_info(REPOSITORY, revision="0" * 40)
    assert api.file_exists(REPOSITORY, "config.json")
    assert not api.file_exists(REPOSITORY, "absent.json")


def test_a_token_may_be_wanted(model: Path) -> None:
    with running_origin({REPOSITORY: model}, access=Access(bearer="hf_right")) as origin:
        assert api_of(origin, "hf_right").model_info(REPOSITORY).id == REPOSITORY
        with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="401"):
            api_of(origin, "hf_wrong").model_info(REPOSITORY)


def test_a_body_that_ends_early_is_fetched_again(
    origin: Origin, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    origin.set_faults(Faults((Truncate(when=When(path="*.safetensors", most=1)),)))
    assert contents(snapshot(origin, tmp_path / "cache")) == contents(model)
    assert origin.stats().num_requests("*/resolve/*.safetensors") == 5  # HEAD and GET of both, and one again
