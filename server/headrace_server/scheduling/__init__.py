"""Policies: who gets memory, when a model that went wrong is tried again, which processors an engine computes on, who
is let into an engine and who waits.

Pure and synchronous. They are told how things stand and what time it is, and answer; they start nothing, wait for
nothing, and know no engine.
"""
