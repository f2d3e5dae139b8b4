"""Keys that take one table or a list of them."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Discriminator, Tag

# Parts of pydantic's locations, which name no key.
ONE, SEVERAL = "<one>", "<several>"

TableT = TypeVar("TableT", bound=BaseModel)


def _form(value: Any) -> str:
    return ONE if isinstance(value, dict | BaseModel) else SEVERAL


OneOrSeveral = Annotated[
    Annotated[TableT, Tag(ONE)] | Annotated[tuple[TableT, ...], Tag(SEVERAL)], Discriminator(_form)
]
"""Type of such a key, whose default is the empty list; read it with `several`."""


def several(value: TableT | tuple[TableT, ...]) -> tuple[TableT, ...]:
    """All tables of such a key."""
    return value if isinstance(value, tuple) else (value,)
