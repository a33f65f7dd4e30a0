"""The seek index that the registry's tag `indexed` carries: made by headrace_models, which is imported on demand."""

from loadtests.origin.models import Version

INDEX_PATH = "headrace.seekindex.json"


class NoIndex(Exception):
    """There can be none: the directory is no model of the kind that has one, or nothing here can build it."""


def pinned_index(version: Version) -> tuple[str, bytes]:
    """Media type and content of the index of a model, with the digest of every chunk. Raises NoIndex."""
    try:
        from headrace_models.errors import ModelError
        from headrace_models.index_building import index_of_directory
        from headrace_models.seek_index import MEDIA_TYPE
    except ImportError as error:
        raise NoIndex(str(error)) from error
    try:
        index = index_of_directory(version.directory, f"oci://origin/{version.name}", digests=True)
    except (ModelError, OSError) as error:
        raise NoIndex(str(error)) from error
    return MEDIA_TYPE, index.to_json()
