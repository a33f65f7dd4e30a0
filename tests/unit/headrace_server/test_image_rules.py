"""What is said against which image: pure, on descriptions."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.digest import Sha256
from headrace_server.image.description import Compression, Image, Layer, LayerKind, LazyIndex
from headrace_server.image.findings import Code, Finding, Limits, Severity, binary_size
from headrace_server.image.rules import findings_of, parallel_bound

MIB = 1 << 20
GIB = 1 << 30


def layer(name: str, mib: float, *, unpacked_mib: float | None = None, **fields: object) -> Layer:
    base = Layer(
        Sha256(hashlib.sha256(name.encode()).hexdigest()),
        "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression.GZIP,
        int(mib * MIB),
        None if unpacked_mib is None else int(unpacked_mib * MIB),
        lazy_index=LazyIndex.SOCI,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def image(*layers: Layer, is_as_pulled: bool = True) -> Image:
    return Image("image", layers, is_as_pulled=is_as_pulled)


def codes(subject: Image, limits: Limits | None = None) -> list[Code]:
    return [finding.code for finding in findings_of(subject, limits or Limits())]


def only(subject: Image, code: Code, limits: Limits | None = None) -> Finding:
    (found,) = [finding for finding in findings_of(subject, limits or Limits()) if finding.code is code]
    return found


GOOD = image(layer("base", 80), layer("torch", 200), layer("vllm", 150), layer("rest", 120), layer("app", 2))


def test_nothing_is_said_against_a_good_image() -> None:
    assert findings_of(GOOD, Limits()) == ()


@pytest.mark.parametrize(("mib", "is_found"), [(1024, False), (1024.1, True)])
def test_a_layer_over_the_limit_is_an_error(mib: float, is_found: bool) -> None:
    found = codes(image(*GOOD.layers, layer("big", mib), layer("top", 1)))
    assert (Code.LAYER_TOO_LARGE in found) is is_found


def test_the_error_says_which_layer_and_by_how_much() -> None:
    found = only(image(layer("a", 1), layer("b", 2000)), Code.LAYER_TOO_LARGE, Limits(max_layer_bytes=GIB))
    assert (found.severity, found.layer, found.value, found.limit) == (Severity.ERROR, 2, 2000 * MIB, GIB)
    assert "2.0 GiB, more than 1.0 GiB" in found.message


def test_of_what_is_stored_uncompressed_only_there_a_large_layer_is_no_error() -> None:
    large = layer("big", 1500, compression=Compression.NONE)
    assert only(image(large), Code.LAYER_TOO_LARGE).severity is Severity.ERROR
    saved = only(image(large, is_as_pulled=False), Code.LAYER_TOO_LARGE)
    assert saved.severity is Severity.WARNING
    packed = layer("big", 1500, compression=Compression.GZIP)
    assert only(image(packed, is_as_pulled=False), Code.LAYER_TOO_LARGE).severity is Severity.ERROR


@pytest.mark.parametrize(("number", "is_found"), [(125, False), (126, True)])
def test_more_layers_than_engines_mount_are_an_error(number: int, is_found: bool) -> None:
    found = codes(image(*(layer(str(n), 1) for n in range(number))))
    assert (Code.TOO_MANY_LAYERS in found) is is_found


@pytest.mark.parametrize(("number", "is_found"), [(1, True), (2, True), (3, False)])
def test_few_layers_give_little_to_do_at_once(number: int, is_found: bool) -> None:
    found = codes(image(*(layer(str(n), 40) for n in range(number))), Limits(min_image_bytes=0))
    assert (Code.TOO_FEW_LAYERS in found) is is_found


def test_the_same_layer_twice_is_one_to_pull() -> None:
    twice = image(layer("a", 40), layer("a", 40), layer("b", 40))
    assert Code.TOO_FEW_LAYERS in codes(twice)
    assert twice.size_bytes == 80 * MIB


@pytest.mark.parametrize(("mib", "is_found"), [(90, False), (91, True)])
def test_a_layer_that_is_most_of_the_image_dominates(mib: float, is_found: bool) -> None:
    subject = image(layer("a", 30), layer("b", mib), layer("c", 30))
    assert (Code.DOMINANT_LAYER in codes(subject)) is is_found


def test_an_only_layer_is_too_few_and_does_not_dominate_besides() -> None:
    assert codes(image(layer("a", 100))) == [Code.TOO_FEW_LAYERS]


def test_a_dominant_layer_bounds_what_parallel_pulling_gains() -> None:
    subject = image(layer("a", 10, unpacked_mib=50), layer("b", 90, unpacked_mib=100), layer("c", 1, unpacked_mib=50))
    found = only(subject, Code.DOMINANT_LAYER)
    assert (found.layer, found.limit) == (2, 0.6)
    assert found.value == pytest.approx(90 / 101)
    assert "at most 2.0 times" in found.message


@given(st.lists(st.integers(0, 10**12), max_size=30))
def test_the_bound_is_between_one_and_the_number_of_layers(sizes: list[int]) -> None:
    layers = [replace(layer(str(number), 0), size_bytes=size) for number, size in enumerate(sizes)]
    assert 1 <= parallel_bound(layers) <= max(1, len(layers)) * (1 + 1e-9)


def test_the_bound_takes_unpacked_sizes_only_where_all_are_known() -> None:
    known = [layer("a", 1, unpacked_mib=30), layer("b", 1, unpacked_mib=10)]
    assert parallel_bound(known) == pytest.approx(4 / 3)
    assert parallel_bound([*known, layer("c", 2)]) == pytest.approx(2)


class TestLazyPulling:
    def test_without_any_index_it_cannot_help(self) -> None:
        bare = image(*(replace(found, lazy_index=None) for found in GOOD.layers))
        found = only(bare, Code.NO_LAZY_INDEX)
        assert found.severity is Severity.NOTE
        assert "4 of 4 layers from 10.0 MiB" in found.message
        assert "soci convert" in found.advice

    def test_with_some_layers_indexed_it_helps_in_part(self) -> None:
        part = image(layer("a", 50), layer("b", 50, lazy_index=None), layer("c", 50))
        found = only(part, Code.PARTIAL_LAZY_INDEX)
        assert (found.severity, found.value) == (Severity.WARNING, 50 * MIB)

    def test_small_layers_need_no_index(self) -> None:
        assert codes(image(layer("a", 50), layer("b", 50), layer("c", 9.9, lazy_index=None))) == []

    def test_soci_is_not_advised_for_zstd(self) -> None:
        zstd = [layer(name, 50, compression=Compression.ZSTD, lazy_index=None) for name in "abc"]
        assert "zstd:chunked" in only(image(*zstd), Code.NO_LAZY_INDEX).advice

    def test_of_a_saved_archive_nothing_is_said(self) -> None:
        saved = image(*(replace(found, lazy_index=None) for found in GOOD.layers), is_as_pulled=False)
        assert codes(saved) == [Code.NOT_AS_PULLED]


class TestSmallImages:
    def test_a_tiny_image_needs_neither(self) -> None:
        tiny = image(layer("a", 20, lazy_index=None))
        assert codes(tiny) == [Code.TINY_IMAGE]
        assert only(tiny, Code.TINY_IMAGE).severity is Severity.NOTE

    def test_it_is_still_held_to_its_limits(self) -> None:
        assert Code.LAYER_TOO_LARGE in codes(image(layer("a", 20)), Limits(max_layer_bytes=10 * MIB))

    @pytest.mark.parametrize("limits", [Limits(), Limits(min_image_bytes=0)])
    def test_an_image_without_layers_or_bytes_breaks_nothing(self, limits: Limits) -> None:
        assert Code.TOO_FEW_LAYERS not in codes(image(), limits)
        findings_of(image(layer("empty", 0)), limits)


class TestUpdatesAndWeights:
    @pytest.mark.parametrize(("mib", "is_found"), [(64, False), (65, True)])
    def test_a_large_topmost_layer_moves_with_each_update(self, mib: float, is_found: bool) -> None:
        found = codes(image(*GOOD.layers[:-1], layer("app", mib)))
        assert (Code.LARGE_TOP_LAYER in found) is is_found

    def test_an_only_layer_is_not_topmost(self) -> None:
        assert Code.LARGE_TOP_LAYER not in codes(image(layer("a", 100)))

    def test_weights_beside_packages_are_named(self) -> None:
        instruction = "/bin/sh -c pip install vllm && huggingface-cli download org/name"
        found = only(image(*GOOD.layers, layer("x", 40, created_by=instruction)), Code.WEIGHTS_IN_APP_LAYER)
        assert (found.severity, found.layer) == (Severity.WARNING, 6)

    def test_weights_in_a_layer_of_their_own_are_noted(self) -> None:
        weights = layer("w", 40, created_by="COPY model.safetensors /models/", kind=LayerKind.MODEL)
        assert codes(image(*GOOD.layers, weights)) == [Code.WEIGHTS_IN_IMAGE]
        assert codes(image(*GOOD.layers, replace(weights, size_bytes=MIB))) == []


def test_uncompressed_layers_of_a_registry_are_warned_of() -> None:
    plain = layer("p", 40, compression=Compression.NONE)
    assert only(image(*GOOD.layers, plain), Code.UNCOMPRESSED_LAYER).layer == 6


def test_errors_come_first_and_notes_last() -> None:
    worst = image(layer("a", 2000, lazy_index=None), layer("b", 1))
    severities = [finding.severity for finding in findings_of(worst, Limits())]
    assert severities == sorted(severities, key=list(Severity).index)
    assert (severities[0], severities[-1]) == (Severity.ERROR, Severity.NOTE)


def test_every_code_can_be_found_and_says_what_to_do() -> None:
    subjects = [
        image(*(layer(str(n), 0) for n in range(126))),
        image(layer("a", 2000, lazy_index=None), layer("b", 100)),
        image(layer("a", 100, lazy_index=None)),
        image(
            layer("a", 100),
            layer("b", 20, lazy_index=None),
            layer("c", 20, compression=Compression.NONE),
            is_as_pulled=True,
        ),
        image(layer("a", 100, kind=LayerKind.MODEL), layer("b", 1, created_by="pip install x ./w.gguf")),
        image(layer("a", 100), is_as_pulled=False),
    ]
    found = [finding for subject in subjects for finding in findings_of(subject, Limits())]
    assert {finding.code for finding in found} == set(Code)
    assert all(finding.advice and finding.message for finding in found)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (GIB, "1.0 GiB"), (272 * MIB + MIB // 2, "272.5 MiB")],
)
def test_sizes_are_written_in_the_units_of_limits(num_bytes: int, text: str) -> None:
    assert binary_size(num_bytes) == text
