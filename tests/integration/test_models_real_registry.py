"""Every form of artifact, pushed to the reference registry and read from it."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace_models.reference import parse_reference
from headrace_models.sources.base import Literal, SourceOptions, read_exactly
from headrace_models.sources.oci import open_oci
from requirements.debian_tools import ensure_docker_registry
from tests.fakes.artifacts import Form, layers_of, push, seek_index_layer
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.real_registry import running_real_registry


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = ensure_docker_registry()
    if binary is None:
        pytest.skip("no docker-registry here, and none to be had from apt")
    with running_real_registry(binary, tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_checkpoint(directory, num_layers=2, hidden=32, shards=2)
    return directory


@pytest.mark.parametrize("form", list(Form))
def test_the_reference_registry_serves_every_form_of_artifact(
    address: str, model: Path, tmp_path: Path, form: Form
) -> None:
    repository = f"team/{form.name.lower()}"
    digest = push(address, repository, [*layers_of(model, form), seek_index_layer(b'{"format":1}')], tag="v1")
    expected = {path.name: path.read_bytes() for path in model.iterdir()}
    for name in (":v1", f"@{digest}"):
        reference = parse_reference(f"oci://{address}/{repository}{name}")
        with closing(open_oci(reference, SourceOptions(tmp_path))) as source:
            assert source.revision == digest
            assert source.pinned_index == "headrace.seekindex.json"
            found = {file.path: read_exactly(source, file, 0, file.size_bytes) for file in source.files}
            assert found.pop(source.pinned_index) == b'{"format":1}'
            assert found == expected
            for file in source.files:
                if file.path in expected:
                    begin, end = file.size_bytes // 3, file.size_bytes // 2
                    assert read_exactly(source, file, begin, end) == expected[file.path][begin:end]
            for proof in source.proofs:
                if source.pinned_index not in proof.paths:
                    parts = (
                        part.data if isinstance(part, Literal) else expected[part.path][part.begin : part.end]
                        for part in proof.parts
                    )
                    assert hashlib.sha256(b"".join(parts)).hexdigest() == proof.digest.hex
    assert list(tmp_path.iterdir()) == []
