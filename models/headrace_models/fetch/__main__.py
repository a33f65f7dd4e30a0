"""The fetching process: `python -P -m headrace_models.fetch`.

The request comes as the first line of standard input, events leave as lines on standard output, and when standard
input closes the parent is gone and so is this process: whatever it was doing, the store is made for that.
"""

import os
import sys
import threading

from headrace_models.child_process import exit_with_parent
from headrace_models.fetch.events import FetchEvent, to_json
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.session import run_session


def main() -> None:
    """Read the request, fetch, leave."""
    request = FetchRequest.from_json(sys.stdin.readline())
    exit_with_parent()
    run_session(request, _print, stop=threading.Event())
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for a source are not waited for


def _print(event: FetchEvent) -> None:
    os.write(1, (to_json(event) + "\n").encode())


main()
