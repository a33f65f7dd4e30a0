"""Logs and metrics. Never a prompt, a completion or a key."""
