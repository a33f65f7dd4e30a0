"""What stands after `scheme://` of a model elsewhere: read strictly, written canonically.

Each class reads its text with `parse` and writes the canonical one with `str()`; `parse(str(location)) == location`.
Pure: nothing is looked up, and whether a host may be spoken to in the clear is decided when it is opened. A text is
hostile until parsed. Messages never repeat what may be a secret: what stands before an `@` or after a `?`.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from headrace_models.digest import Sha256
from headrace_models.errors import InvalidReference

DEFAULT_REVISION = "main"
DEFAULT_TAG = "latest"
MAX_HOST_CHARS = 253
MAX_OCI_NAME_CHARS = 255

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_HUB_PART = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}", re.ASCII)
_BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+", re.ASCII)
# Grammar of the distribution specification (github.com/distribution/reference, regexp.go).
_OCI_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_OCI_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
# git check-ref-format: what no branch or tag may hold.
_NOT_IN_REVISIONS = re.compile(r"[\s~^:?*\[\\]|\.\.|@\{|//|^/|/$|\.$|(?:^|/)\.|\.lock(?:/|$)|^@$|^-")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ESCAPE_OR_CHARACTER = re.compile(r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9._~!$&'()*+,;=:@-]")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".gguf", ".json")


@dataclass(frozen=True, slots=True)
class OciLocation:
    """An artifact in a registry. `registry` is `host` or `host:port`; exactly one of `tag` and `digest` is set: a tag
    beside a digest says nothing and is dropped, and without either the tag is `latest`."""

    registry: str
    repository: str
    tag: str | None
    digest: Sha256 | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `registry[:port]/repo[/...][:tag][@sha256:...]`; raises InvalidReference."""
        named, at, digest = text.partition("@")
        registry, slash, rest = named.partition("/")
        if not slash or not (registry.lower() == "localhost" or "." in registry or ":" in registry):
            raise InvalidReference(
                f"no registry and repository in {named[:100]!r} (wanted: oci://registry.example/repository:tag)"
            )
        repository, colon, tag = rest.partition(":")
        _check_repository(repository)
        if colon and _OCI_TAG.fullmatch(tag) is None:
            raise InvalidReference(f"not a tag: {tag[:100]!r} (letters, digits, '_', '.' and '-', at most 128)")
        pinned = _digest(digest) if at else None
        return cls(canonical_host(registry), repository, None if pinned else tag or DEFAULT_TAG, pinned)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag not in {None, DEFAULT_TAG} else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def display_name(self) -> str:
        """The last part of the repository."""
        return self.repository.rpartition("/")[2]

    @property
    def is_immutable(self) -> bool:
        """Whether it names one content for ever."""
        return self.digest is not None


@dataclass(frozen=True, slots=True)
class HubLocation:
    """A model on the Hugging Face hub: `repository` is `org/name` or, of old ones, `name`; `revision` a branch, a tag
    or a commit of 40 lower-case hex digits."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `org/name[@revision]`; raises InvalidReference."""
        repository, at, revision = text.partition("@")
        parts = repository.split("/")
        if len(parts) > 2 or any(_HUB_PART.fullmatch(part) is None for part in parts):
            raise InvalidReference(f"not a model on the hub: {repository[:100]!r} (wanted: hf://org/name@revision)")
        if at and (not revision or _NOT_IN_REVISIONS.search(revision)):
            raise InvalidReference(f"not a branch, tag or commit: {revision[:100]!r}")
        commit = _COMMIT.fullmatch(revision) is not None
        return cls(repository, revision.lower() if commit else revision or DEFAULT_REVISION)

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision != DEFAULT_REVISION else "")

    @property
    def display_name(self) -> str:
        """The name without the organisation."""
        return self.repository.rpartition("/")[2]

    @property
    def is_immutable(self) -> bool:
        """Whether it names one content for ever."""
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, slots=True)
class S3Location:
    """Objects below `prefix` of a bucket; `prefix` has no slash at either end and may be empty. It is the key as it
    is, without escapes."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `bucket[/prefix]`; raises InvalidReference."""
        bucket, _slash, rest = text.partition("/")
        if _BUCKET.fullmatch(bucket) is None or _IPV4.fullmatch(bucket):
            raise InvalidReference(
                f"not the name of a bucket: {bucket[:100]!r} (3 to 63 lower-case letters, digits, '.' and '-')"
            )
        prefix = rest.removesuffix("/")
        if prefix != prefix.strip() or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
            raise InvalidReference(f"empty parts, '.', '..' or spaces at the end in the prefix {rest[:100]!r}")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket

    @property
    def display_name(self) -> str:
        """The last part of the prefix, or the bucket."""
        return self.prefix.rpartition("/")[2] or self.bucket

    @property
    def is_immutable(self) -> bool:
        """Whether it names one content for ever."""
        return False


@dataclass(frozen=True, slots=True)
class WebLocation:
    """A directory on a web server. `host` has its port unless that is the scheme's own; `path` is escaped and begins
    and ends with a slash. Whoever parses it says which port goes without saying."""

    host: str
    path: str

    @classmethod
    def parse(cls, text: str, *, default_port: int = 443) -> Self:
        """Read `host[:port]/dir/`; raises InvalidReference."""
        authority, _slash, path = text.partition("/")
        if "@" in authority:
            raise InvalidReference(
                "credentials do not belong into the address of a model: leave out what is before '@'"
            )
        if "?" in text or "#" in text:
            raise InvalidReference(
                "the address of a model directory has no '?' or '#' (in a name: %3F, %23; secrets: leave them out)"
            )
        parts = [_canonical_part(part) for part in path.split("/")]
        if parts[-1].lower().endswith(_FILE_SUFFIXES):
            raise InvalidReference(
                f"{parts[-1][:100]!r} is a file: give the directory that it is in, with a '/' at the end"
            )
        if not parts[-1]:
            parts.pop()
        if any(unquote(part) in {"", ".", ".."} for part in parts):
            raise InvalidReference(f"empty parts, '.' or '..' in the path {path[:100]!r}")
        return cls(canonical_host(authority, default_port), "".join(f"/{part}" for part in parts) + "/")

    def __str__(self) -> str:
        return f"{self.host}{self.path}"

    @property
    def display_name(self) -> str:
        """The name of the directory, or the host."""
        return unquote(self.path[:-1].rpartition("/")[2]) or self.host

    @property
    def is_immutable(self) -> bool:
        """Whether it names one content for ever."""
        return False


def canonical_host(text: str, default_port: int | None = None) -> str:
    """`host[:port]` in lower case, an IPv6 address in brackets, without `default_port`; raises InvalidReference."""
    host, port = _split_port(text)
    if port == str(default_port):
        port = ""
    return f"{_host(host)}:{port}" if port else _host(host)


def _split_port(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        return text, ""
    if _PORT.fullmatch(port) is None or int(port) > 65535:
        raise InvalidReference(f"not a port: {port[:100]!r} in {text[:100]!r}")
    return host, port


def _host(text: str) -> str:
    lower = text.lower()
    if lower.startswith("[") and lower.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(lower[1:-1].replace('%', 'zone'))}]"
        except ValueError as error:
            raise InvalidReference(f"not an IPv6 address: {text[:100]!r}") from error
    if len(lower) > MAX_HOST_CHARS or any(_LABEL.fullmatch(label) is None for label in lower.split(".")):
        raise InvalidReference(f"not a host name: {text[:100]!r} (in other alphabets: its xn-- form)")
    return lower


def _check_repository(repository: str) -> None:
    parts = repository.split("/")
    if len(repository) > MAX_OCI_NAME_CHARS or any(_OCI_COMPONENT.fullmatch(part) is None for part in parts):
        raise InvalidReference(
            f"not a repository: {repository[:100]!r} (lower-case letters and digits, single '.', '_' or '-' between)"
        )


def _digest(text: str) -> Sha256:
    try:
        return Sha256.parse(text)
    except ValueError as error:
        raise InvalidReference(str(error)) from error


def _canonical_part(part: str) -> str:
    """One part of a path with just the escapes that it needs (RFC 3986, section 6.2.2)."""
    if _BROKEN_ESCAPE.search(part):
        raise InvalidReference(f"a '%' without two hex digits in {part[:100]!r} (write %25 for a per cent sign)")
    if _CONTROL.search(unquote(part)):
        raise InvalidReference(f"the model reference has control characters: {part[:100]!a}")
    return _ESCAPE_OR_CHARACTER.sub(_escaped, part)


def _escaped(match: re.Match[str]) -> str:
    text = match[0]
    if not text.startswith("%"):
        return quote(text, safe="")
    character = chr(int(text[1:], 16))
    return character if _UNRESERVED.fullmatch(character) else text.upper()
