"""What tests with drawn inputs have in common; the same draws on every machine."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**60)
    | st.floats()
    | st.text(max_size=30)
)


def nested(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Also in lists and tables, a few levels deep."""
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    )


def changed(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any]) -> Any:
    """A tree of lists and tables with one place changed, whichever, or removed."""
    if isinstance(tree, dict | list) and tree and draw(st.integers(0, 5)):
        places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        place = draw(st.sampled_from(places))
        copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
        if draw(st.integers(0, 7)):
            copy[place] = changed(draw, copy[place], values)
        else:
            del copy[place]
        return copy
    return draw(values)


def without_none(tree: Any) -> Any:
    """TOML has no null."""
    if isinstance(tree, dict):
        return {key: without_none(inner) for key, inner in tree.items() if inner is not None}
    if isinstance(tree, list):
        return [without_none(inner) for inner in tree if inner is not None]
    return tree
