"""What can be wrong with an image before there is anything to judge."""

from headrace_server.errors import HeadraceError


class ImageUnreadable(HeadraceError):
    """It is no image, or a damaged one; the message is one line that says what to do."""
