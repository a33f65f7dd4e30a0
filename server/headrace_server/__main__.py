"""`python -m headrace_server` is the `headrace` command."""

from headrace_server.cli import main

if __name__ == "__main__":
    main()
