"""Features as a converter lists them: their entity has the name of the feature unless said."""

from cdp_torchrec.data.schema import Feature, Level, Role


def request_id(name: str, role: Role, entity: str | None = None) -> Feature:
    """One id of a request."""
    return _ids(name, role, "request", entity)


def request_ids(name: str, role: Role, entity: str | None = None) -> Feature:
    """A bag of ids of a request."""
    return _ids(name, role, "request", entity).model_copy(update={"kind": "ids"})


def candidate_id(name: str, role: Role, entity: str | None = None) -> Feature:
    """One id of each candidate."""
    return _ids(name, role, "candidate", entity)


def request_number(name: str, role: Role) -> Feature:
    """A number of a request."""
    return Feature(name=name, role=role, level="request", kind="number")


def candidate_number(name: str, role: Role) -> Feature:
    """A number of each candidate."""
    return Feature(name=name, role=role, level="candidate", kind="number")


def _ids(name: str, role: Role, level: Level, entity: str | None) -> Feature:
    return Feature(name=name, role=role, level=level, kind="id", entity=entity or name)
