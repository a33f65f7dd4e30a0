"""From a reference to its source: the one place that knows all schemes."""

from typing import assert_never

from headrace_models.errors import UnsupportedReference
from headrace_models.reference import ModelReference, Scheme
from headrace_models.sources.base import Source, SourceOptions


def open_source(reference: ModelReference, options: SourceOptions) -> Source:
    """Find out what the model is: its revision and its files. Blocks on the network; raises ModelError."""
    match reference.scheme:
        case Scheme.FILE:
            from headrace_models.sources.local_directory import LocalDirectory

            return LocalDirectory(reference)
        case Scheme.HTTPS | Scheme.HTTP:
            from headrace_models.sources.web_directory import open_web_directory

            return open_web_directory(reference, options)
        case Scheme.HF:
            from headrace_models.sources.hub import open_hub

            return open_hub(reference, options)
        case Scheme.S3:
            from headrace_models.sources.s3 import open_s3

            return open_s3(reference, options)
        case Scheme.OCI:
            from headrace_models.sources.oci import open_oci

            return open_oci(reference, options)
        case Scheme.EMBEDDED:
            raise UnsupportedReference(f"{reference} is made from a wheel, not fetched")
        case _:
            assert_never(reference.scheme)
