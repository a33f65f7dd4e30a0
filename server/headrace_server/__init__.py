"""Headrace: a local-to-cluster LLM inference server.

The package is layered (see server/DESIGN.md); importing it costs nothing.
"""

__version__ = "0.1.0"
