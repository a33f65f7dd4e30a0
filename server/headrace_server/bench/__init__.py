"""Measures servers with an OpenAI-compatible API: one alone, or two against each other.

The package stands alone: of this project it knows the errors and the version. It talks HTTP, reads /proc, and stops and
continues processes; it never starts a server, and it imports neither an engine nor a drawing library until it draws.
The order of reading: `arrivals` (what is sent and when), `generator` (sends it), `outcomes` and `summary` (what came of
it), `turns` (one server runs at a time), `command` (all of it together).
"""
