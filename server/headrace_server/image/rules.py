"""What can be said against an image. Pure.

Two ways make pulls faster. *Parallel pulling* (SOCI's parallel-pull-unpack, containerd's ranged fetch) needs no index:
layers, and ranges of one layer, come at the same time, but a layer is unpacked by one process, so that the largest one
bounds what several can gain. *Lazy pulling* starts the container before its layers have come, and needs an index of
their files: eStargz and zstd:chunked hold one in the layer, SOCI adds one beside layers of 10 MiB and more (gzip or
uncompressed).
https://github.com/awslabs/soci-snapshotter/blob/main/docs/parallel-mode.md and .../soci-index-manifest-v2.md.

An error is what a limit forbids; a warning, what keeps one of the two from helping, or makes updates expensive.
"""

from collections.abc import Iterator, Sequence

from headrace_server.image.description import Compression, Image, Layer, LayerKind
from headrace_server.image.findings import Code, Finding, Limits, Severity, binary_size
from headrace_server.image.layer_kinds import mixes_weights
from headrace_server.image.layers import SOCI_MIN_LAYER_BYTES


def findings_of(image: Image, limits: Limits) -> tuple[Finding, ...]:
    """All findings, errors first."""
    found = [
        *_too_large(image, limits),
        *_number_of_layers(image, limits),
        *_weights(image),
        *_top_layer(image, limits),
        *(_tiny(image, limits) or (*_parallel(image, limits), *_lazy(image))),
        *_storage(image),
    ]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def parallel_bound(layers: Sequence[Layer]) -> float:
    """How many times faster unpacking can be at most with a process for each layer: all bytes by those of the largest
    layer, unpacked where that is known of all. 1 for an image without layers."""
    sizes = [layer.unpacked_bytes for layer in layers]
    known = [size for size in sizes if size is not None]
    work = known if len(known) == len(sizes) else [layer.size_bytes for layer in layers]
    return sum(work) / max(work) if any(work) else 1.0


def _too_large(image: Image, limits: Limits) -> Iterator[Finding]:
    for number, layer in enumerate(image.layers, 1):
        if layer.size_bytes <= limits.max_layer_bytes:
            continue
        is_certain = image.is_as_pulled or layer.compression is not Compression.NONE
        yield Finding(
            Code.LAYER_TOO_LARGE,
            Severity.ERROR if is_certain else Severity.WARNING,
            f"layer {number} has {binary_size(layer.size_bytes)}, more than {binary_size(limits.max_layer_bytes)}"
            + ("" if is_certain else "; stored uncompressed, so that it may be less when it is pulled"),
            "split the instruction that made it, so that parts can be pulled and unpacked at the same time"
            if is_certain
            else "lint the image in its registry, or as oci-archive",
            layer=number,
            value=layer.size_bytes,
            limit=limits.max_layer_bytes,
        )


def _number_of_layers(image: Image, limits: Limits) -> Iterator[Finding]:
    num_layers = len(image.layers)
    if num_layers > limits.max_layers:
        yield Finding(
            Code.TOO_MANY_LAYERS,
            Severity.ERROR,
            f"{num_layers} layers, more than the {limits.max_layers} that engines mount on each other",
            "join instructions whose files change together",
            value=num_layers,
            limit=limits.max_layers,
        )


def _weights(image: Image) -> Iterator[Finding]:
    for number, layer in enumerate(image.layers, 1):
        if mixes_weights(layer.created_by):
            yield Finding(
                Code.WEIGHTS_IN_APP_LAYER,
                Severity.WARNING,
                f"the instruction of layer {number} brings weights and packages ({binary_size(layer.size_bytes)})",
                "give the weights a layer of their own, below what changes more often, or keep them out of the image",
                layer=number,
                value=layer.size_bytes,
            )
        elif layer.kind is LayerKind.MODEL and layer.size_bytes >= SOCI_MIN_LAYER_BYTES:
            yield Finding(
                Code.WEIGHTS_IN_IMAGE,
                Severity.NOTE,
                f"layer {number} seems to hold weights ({binary_size(layer.size_bytes)}), which an engine reads whole",
                "lazy pulling does not help with them; as an oci:// model they come while the engine starts",
                layer=number,
                value=layer.size_bytes,
            )


def _top_layer(image: Image, limits: Limits) -> Iterator[Finding]:
    """What is on top is what changes most often."""
    if not image.layers or image.layers[-1].size_bytes <= limits.max_top_layer_bytes or len(image.layers) == 1:
        return
    size_bytes = image.layers[-1].size_bytes
    yield Finding(
        Code.LARGE_TOP_LAYER,
        Severity.WARNING,
        f"the topmost layer has {binary_size(size_bytes)}, more than {binary_size(limits.max_top_layer_bytes)}:"
        " each update moves it",
        "copy what seldom changes (packages, weights) in instructions before it",
        layer=len(image.layers),
        value=size_bytes,
        limit=limits.max_top_layer_bytes,
    )


def _tiny(image: Image, limits: Limits) -> tuple[Finding, ...]:
    if image.size_bytes >= limits.min_image_bytes:
        return ()
    return (
        Finding(
            Code.TINY_IMAGE,
            Severity.NOTE,
            f"the image has {binary_size(image.size_bytes)}, less than {binary_size(limits.min_image_bytes)}",
            "it is pulled in a moment; neither parallel nor lazy pulling would be felt",
            value=image.size_bytes,
            limit=limits.min_image_bytes,
        ),
    )


def _parallel(image: Image, limits: Limits) -> Iterator[Finding]:
    num_layers = len({layer.digest for layer in image.layers})
    if not image.size_bytes:
        return
    if num_layers < limits.min_layers:
        yield Finding(
            Code.TOO_FEW_LAYERS,
            Severity.WARNING,
            f"{num_layers} layer(s), fewer than {limits.min_layers}: there is little to unpack at the same time",
            "parallel pulling cannot help much; split the largest instruction",
            value=num_layers,
            limit=limits.min_layers,
        )
    share = max(layer.size_bytes for layer in image.layers) / image.size_bytes
    if num_layers > 1 and share > limits.max_layer_share:
        number = max(range(len(image.layers)), key=lambda place: image.layers[place].size_bytes) + 1
        yield Finding(
            Code.DOMINANT_LAYER,
            Severity.WARNING,
            f"layer {number} is {share:.0%} of the image, more than {limits.max_layer_share:.0%}: unpacking in parallel"
            f" is at most {parallel_bound(image.layers):.1f} times as fast",
            "split it; until then parallel pulling cannot help much",
            layer=number,
            value=share,
            limit=limits.max_layer_share,
        )


def _lazy(image: Image) -> Iterator[Finding]:
    """Layers that are too small for an index do not count: they are pulled whole, at once."""
    if not image.is_as_pulled:
        return
    large = [layer for layer in image.layers if layer.size_bytes >= SOCI_MIN_LAYER_BYTES]
    bare = [layer for layer in large if layer.lazy_index is None]
    if not bare:
        return
    size_bytes = sum(layer.size_bytes for layer in bare)
    is_partial = len(bare) < len(large)
    yield Finding(
        Code.PARTIAL_LAZY_INDEX if is_partial else Code.NO_LAZY_INDEX,
        Severity.WARNING if is_partial else Severity.NOTE,
        f"{len(bare)} of {len(large)} layers from {binary_size(SOCI_MIN_LAYER_BYTES)} have no index"
        f" ({binary_size(size_bytes)}): lazy pulling fetches them whole",
        _index_advice(bare),
        value=size_bytes,
    )


def _index_advice(bare: Sequence[Layer]) -> str:
    if any(layer.compression is Compression.ZSTD for layer in bare):
        return "push with zstd:chunked, or convert to gzip and add a SOCI index; parallel pulling needs none"
    return "soci convert adds a SOCI index without rebuilding; parallel pulling needs none"


def _storage(image: Image) -> Iterator[Finding]:
    if not image.is_as_pulled:
        yield Finding(
            Code.NOT_AS_PULLED,
            Severity.NOTE,
            "the archive holds layers as docker save writes them, uncompressed: sizes are not what a pull moves",
            "for those, lint the image in its registry, or as oci-archive",
        )
        return
    for number, layer in enumerate(image.layers, 1):
        if layer.compression is Compression.NONE and layer.size_bytes >= SOCI_MIN_LAYER_BYTES:
            yield Finding(
                Code.UNCOMPRESSED_LAYER,
                Severity.WARNING,
                f"layer {number} is not compressed ({binary_size(layer.size_bytes)})",
                "push it compressed, unless the link is faster than a core unpacks gzip",
                layer=number,
                value=layer.size_bytes,
            )
