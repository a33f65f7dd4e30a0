"""Write a model into an OCI registry, with its seek index and the digests of its chunks under one digest."""
