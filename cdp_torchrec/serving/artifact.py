"""The exported artifact: a directory whose every file is known by its checksum."""


class ArtifactError(RuntimeError):
    """An artifact, or the history store beside it, cannot be served."""

    user_error = True
