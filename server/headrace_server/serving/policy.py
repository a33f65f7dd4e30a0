"""What a client may ask of a particular model: fields that are off unless the model's settings turn them on.

Pure. Chat templates are programs that run in this process, and remote media makes the server fetch addresses that a
client names, so both are off by default.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from headrace_server.domain import JsonObject
from headrace_server.errors import InvalidRequest

_TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs")
_MEDIA_KEYS = frozenset({"image_url", "audio_url", "video_url", "url", "file_url", "file_data"})


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """The switches of one model."""

    client_chat_template: bool = False
    remote_media: bool = False

    def check(self, payload: JsonObject) -> None:
        """Raise InvalidRequest if the payload asks for something that is off."""
        if not self.client_chat_template:
            _refuse_templates(payload)
        for address in _media_addresses(payload):
            self._check_address(address)

    def _check_address(self, address: str) -> None:
        scheme = address.partition(":")[0].strip().lower()
        if scheme == "data" or (self.remote_media and scheme in ("http", "https")):
            return
        raise InvalidRequest(
            "media must be sent inside the request as a data: URL; fetching addresses is off for this model "
            "(models[].remote_media)",
            code="remote_media_off",
            param="messages",
        )


def _refuse_templates(payload: JsonObject) -> None:
    for name in _TEMPLATE_FIELDS:
        if payload.get(name) is not None:
            raise InvalidRequest(
                f"{name} from clients is off for this model (models[].client_chat_template)",
                code="chat_template_off",
                param=name,
            )


def _media_addresses(payload: JsonObject) -> Iterator[str]:
    """Addresses in the content parts of messages and input items; text is never looked into."""
    for field in ("messages", "input", "system"):
        items = payload.get(field)
        for item in items if isinstance(items, list) else ():
            yield from _addresses_in_item(item)


def _addresses_in_item(item: object) -> Iterator[str]:
    """`item` is a message, a content part or a block; parts may nest (tool results carry blocks)."""
    if isinstance(item, list):
        for part in item:
            yield from _addresses_in_item(part)
        return
    if not isinstance(item, dict):
        return
    for key, value in item.items():
        if key in _MEDIA_KEYS and isinstance(value, str):
            yield value
        elif key in _MEDIA_KEYS or key in ("content", "source", "output"):
            yield from _addresses_in_item(value)
