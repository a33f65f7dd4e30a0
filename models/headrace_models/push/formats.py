"""Whose media types an artifact can have. By itself, so that a command can name them without importing more."""

from enum import StrEnum


class ArtifactFormat(StrEnum):
    """MODELPACK: CNCF's `application/vnd.cncf.model.*`. DOCKER: `application/vnd.docker.ai.*`."""

    MODELPACK = "modelpack"
    DOCKER = "docker"
