"""Container images, looked at from outside: what their layers are, and whether pulling them can be made faster.

`reading` finds an image in a directory, an archive or a registry and describes it (`description`); `rules` judges the
description. Nothing is unpacked, and of layers at most a few bytes are read. Models in registries are the business
of `headrace_models`, whose registry client is used here.
"""
