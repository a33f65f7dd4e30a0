"""Fetches a model as a server does, from a process with a fetching child, so that either or both can be killed.

    python -m loadtests.cache_parent < REQUEST

The first line of standard input is a `FetchRequest`; the fetch's events are printed, a line of JSON each, those of a
child that was started again too. Ends with its parent.
"""

import sys

from headrace_models.child_process import exit_with_parent
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import to_json
from headrace_models.fetch.request import FetchRequest


def main() -> None:
    """Fetch, and tell."""
    process = FetchProcess(FetchRequest.from_json(sys.stdin.readline()))
    exit_with_parent()
    process.start()
    for event in process.events():
        print(to_json(event), flush=True)


if __name__ == "__main__":
    main()
