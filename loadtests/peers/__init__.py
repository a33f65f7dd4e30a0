"""Other ways to get a model's weights from a network into memory, each run in a process of its own against the origin.

`installation.ensure_peers` puts them into `.peers`; `running.run_peer` starts one and reads what it measured.
"""
