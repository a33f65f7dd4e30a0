"""Plain files: `/files/<model>/<path>`, with strong ETags and ranges, and no listing, as from any web server."""

from loadtests.origin.messages import Answer, Request, plain
from loadtests.origin.models import Shelf
from loadtests.origin.ranges import file_answer


class PlainFiles:
    """The current files of every model."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def answer(self, request: Request) -> Answer:
        """A file, or 404."""
        found = self._shelf.split(request.path.removeprefix("/files/"))
        file = found[0].file(found[1]) if found else None
        return plain(404) if file is None else file_answer(file, request)
