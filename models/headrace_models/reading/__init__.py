"""Read a model in the store while it is still coming: as seekable files, as tensors, or by its reference alone."""
