"""Measurements of running servers. Nothing here is installed with the package or imported by it."""
