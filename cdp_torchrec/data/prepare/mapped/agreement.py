"""Whether a mapping is that of a dataset: later rows must mean what the first ones did."""

from collections.abc import Mapping
from pathlib import Path

from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import DatasetError


def check_all_columns(dataset: Path, theirs: DatasetSpec, ours: DatasetSpec) -> None:
    """Whether rows of the mapping are requests and behaviours of the dataset.

    Args:
        dataset: dataset directory.
        theirs: what the dataset holds.
        ours: what the mapping makes.

    Raises:
        DatasetError: another feature, attribute or column of behaviours; names the first.
    """
    _compare(dataset, _all_columns(theirs), _all_columns(ours))


def check_features(dataset: Path, theirs: DatasetSpec, ours: DatasetSpec) -> None:
    """Whether rows of the mapping are requests of the dataset; arguments as `check_all_columns`.

    Raises:
        DatasetError: another feature; names the first.
    """
    _compare(dataset, _features(theirs), _features(ours))


def _compare(dataset: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    for name in {**theirs, **ours}:
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise DatasetError(
                f"{dataset}: the mapping is not the one that it was made by: {name} is {there} in "
                f"the dataset, and {here} in the mapping"
            )


def _features(spec: DatasetSpec) -> dict[str, str]:
    """What each feature is, in words; without the scale of numbers, which no mapping knows."""
    return {f"feature '{f.name}'": _without_scale(f.meaning) for f in spec.features}


def _all_columns(spec: DatasetSpec) -> dict[str, str]:
    columns = _features(spec)
    columns |= {f"attribute '{a.name}'": _without_scale(a.meaning) for a in spec.attributes}
    columns |= {f"'{name}' of behaviours": entity for name, entity in spec.behaviour_columns()}
    return columns


def _without_scale(meaning: str) -> str:
    return meaning.partition(", mean ")[0]
