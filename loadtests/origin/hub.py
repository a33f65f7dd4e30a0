"""A Hugging Face hub over plain HTTP, as far as huggingface_hub 2.4 asks for one to download models (no Xet).

    /hub/api/models/{repo}[/revision/{rev}]       facts: commit, files
    /hub/api/models/{repo}/tree/{rev}             files with sizes, git blob ids and the SHA-256 of LFS files
    /hub/api/models/{repo}/paths-info/{rev}       the same of some paths (POST)
    /hub/{repo}/resolve/{rev}/{path}              a file, with X-Repo-Commit, X-Linked-Etag and X-Linked-Size

`rev` is a commit, or `main` for the current one. Errors carry X-Error-Code, by which the client tells them apart.
"""

import json
from collections.abc import Iterable
from urllib.parse import parse_qs

from loadtests.origin.messages import Answer, Request, plain
from loadtests.origin.models import ServedFile, Shelf, Version
from loadtests.origin.ranges import file_answer


class Hub:
    """Every model is a repository of the same name."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def answer(self, request: Request) -> Answer:
        """Facts or a file."""
        request = request.below("/hub/")
        if request.path.startswith("api/models/"):
            return self._api(request.below("api/models/"))
        repository, _, rest = request.path.partition("/resolve/")
        revision, _, path = rest.partition("/")
        version = self._version(repository, revision)
        if isinstance(version, Answer):
            return version
        file = version.file(path)
        return _refusal("EntryNotFound", version.commit) if file is None else _file(version, file, request)

    def _api(self, request: Request) -> Answer:
        for verb in ("revision", "tree", "paths-info"):
            repository, found, rest = request.path.partition(f"/{verb}/")
            if found:
                break
        else:
            repository, verb, rest = request.path, "revision", "main"
        revision, _, below = rest.partition("/")
        version = self._version(repository, revision)
        if isinstance(version, Answer):
            return version
        match verb:
            case "tree":
                return _json([_entry(file) for file in version.files if file.path.startswith(below)])
            case "paths-info":
                wanted = parse_qs(request.body.decode()).get("paths", [])
                return _json([_entry(file) for file in version.files if file.path in wanted])
            case _:
                return _json(_facts(version))

    def _version(self, repository: str, revision: str) -> Version | Answer:
        versions = self._shelf.versions(repository)
        if not versions:
            return _refusal("RepoNotFound")
        if revision == "main":
            return versions[0]
        found = next((version for version in versions if version.commit == revision), None)
        return found or _refusal("RevisionNotFound")


def _facts(version: Version) -> dict[str, object]:
    return {
        "id": version.name,
        "modelId": version.name,
        "sha": version.commit,
        "private": False,
        "gated": False,
        "tags": [],
        "siblings": [{"rfilename": file.path} for file in version.files],
    }


def _entry(file: ServedFile) -> dict[str, object]:
    if not file.is_lfs:
        return {"type": "file", "path": file.path, "size": file.size_bytes, "oid": file.git_blob_id}
    lfs = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": 134}
    return {"type": "file", "path": file.path, "size": file.size_bytes, "oid": file.sha256[:40], "lfs": lfs}


def _file(version: Version, file: ServedFile, request: Request) -> Answer:
    etag = f'"{file.sha256 if file.is_lfs else file.git_blob_id}"'
    headers = (("X-Repo-Commit", version.commit), ("X-Linked-Size", str(file.size_bytes)), ("X-Linked-Etag", etag))
    return file_answer(file, request, etag=etag, headers=headers)


def _json(content: Iterable[object]) -> Answer:
    return Answer(200, (("Content-Type", "application/json"),), json.dumps(content).encode())


def _refusal(code: str, commit: str | None = None) -> Answer:
    headers = () if commit is None else (("X-Repo-Commit", commit),)
    return plain(404, code, (("X-Error-Code", code), *headers))
