"""What a comparison compares: the file behind `cdp_torchrec compare TABLE.toml`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts

UNTRAINED = "untrained"
"""Directory of the untrained scorers among the directories of the models."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)

Value = bool | int | float | str


class SelectConfig(Config):
    """Which cells are run now; the finished cells of all others are shown just the same.

    Several processes with disjoint selections may share the work on one run_dir.
    """

    datasets: tuple[str, ...] | None = None
    """Datasets to run; without it, all."""
    models: tuple[str, ...] | None = None
    """Rows to run; without it, all."""


class CompareConfig(Config):
    """A table: one cell for each dataset, row and seed, at the row's best grid point.

    Lists of layers hold paths, relative to the table's file, and key=value as on the command line
    of `cdp_torchrec train`.
    """

    run_dir: Path | None = None
    """Directory of all cells and of the table; without it, runs/<name of the table's file>."""
    datasets: Mapping[str, tuple[str, ...]]
    """Layers of each dataset, by the name that the table shows."""
    models: Mapping[str, tuple[str, ...]]
    """Layers of each row, on top of those of the dataset, by the name that the table shows."""
    settings: tuple[str, ...] = ()
    """key=value for every cell, on top of all layers."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Seeds of the cells. The grid is searched with the first one."""
    grid: Mapping[str, tuple[Value, ...]] = {}
    """Values of some keys. Every row is trained at all combinations with the first seed, and with
    the other seeds at the combination that is best on validation."""
    reference: str
    """Row that the others are compared with."""
    floors: tuple[str, ...] = ()
    """Rows that are no baseline, such as reductions and variants of the reference."""
    without_history: str | None = None
    """Row at 0 % of the gap to the Bayes scorer, where the dataset knows it."""
    caption: str = ""
    """Text below the tables, such as the paper's own numbers."""
    num_bootstrap: PositiveInt = 1000
    """Replicates of the user bootstrap."""
    select: SelectConfig = SelectConfig()
    """Which cells are run now."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = [*self._bad_names(), *self._unknown_names()]
        if not self.datasets:
            conflicts.append(("datasets", "names no dataset"))
        if self.reference in self.floors:
            conflicts.append(("reference", "is one of floors"))
        if len(set(self.seeds)) < len(self.seeds):
            conflicts.append(("seeds", "repeats a seed"))
        for key, values in self.grid.items():
            if not values or len(set(map(repr, values))) < len(values):
                conflicts.append((f"grid.{key}", "needs at least one value, and none twice"))
            elif any("/" in str(value) for value in values):
                conflicts.append((f"grid.{key}", "values name directories and have no '/'"))
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    def _bad_names(self) -> list[tuple[str, str]]:
        tables = {"datasets": self.datasets, "models": self.models}
        return [
            (f"{table}.{name}", "names a directory: use letters, digits, '_', '.', '+' and '-'")
            for table, names in tables.items()
            for name in names
            if not _NAME.fullmatch(name)
        ] + [
            (f"models.{name}", "is the directory of the untrained scorers")
            for name in self.models
            if name == UNTRAINED
        ]

    def _unknown_names(self) -> list[tuple[str, str]]:
        named = {
            "reference": (self.reference,),
            "floors": self.floors,
            "without_history": (self.without_history,) if self.without_history else (),
            "select.models": self.select.models or (),
        }
        conflicts = [
            (key, f"there is no row '{name}' in models, only {', '.join(self.models)}")
            for key, names in named.items()
            for name in names
            if name not in self.models
        ]
        return conflicts + [
            (
                "select.datasets",
                f"there is no '{name}' in datasets, only {', '.join(self.datasets)}",
            )
            for name in self.select.datasets or ()
            if name not in self.datasets
        ]
