"""What a comparison compares: the file behind `cdp_torchrec compare TABLE.toml`."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.experiment_config import Seed

UNTRAINED = "untrained"
"""Directory of the untrained scorers among the directories of the models."""
CELLS = "cells"
"""Directory of the finished cells' files among the directories of the datasets."""

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)

Value = bool | int | float | str


class SelectConfig(Config):
    """Which cells are run now; the finished cells of all others are shown just the same.

    Several processes with disjoint selections may share the work on one run_dir.
    """

    datasets: tuple[str, ...] | None = None
    """Datasets and groups to run; without it, all; []: none, to show what is finished."""
    models: tuple[str, ...] | None = None
    """Rows to run; without it, all; []: none."""


class SearchConfig(Config):
    """The search of every row: the same number of trials, at the same values of `grid`."""

    trials: PositiveInt | None = None
    """Combinations of `grid` that are tried, drawn without repetition, the same for every row;
    without it, all."""
    seed: NonNegativeInt = 0
    """Seed of the draw, and of how the values of `grid_of` are dealt to the trials."""


class GainsConfig(Config):
    """The figure gains.png: GAUC of the reference row, or of some rows, minus that of others."""

    over: tuple[str, ...] = ()
    """Rows that the gain is over, such as the same history pooled; without any, no figure."""
    dials: Mapping[str, Mapping[str, float]] = {}
    """By the label of an axis: groups and datasets that differ in one setting, and its value there.
    Gain of the reference row."""
    rows: Mapping[str, Mapping[str, float]] = {}
    """By the label of an axis: rows that differ in one setting, such as the number of steps, and
    its value. Gain of each of them."""
    of: tuple[str, ...] | None = None
    """Groups and datasets on which `rows`, and the gain by activity of the user, are drawn; without
    it, all that no dial names and no group holds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        idle = [key for key in ("dials", "rows", "of") if getattr(self, key)]
        if idle and not self.over:
            raise ConfigConflicts([(key, "has no effect without gains.over") for key in idle])
        return self


class CompareConfig(Config):
    """A table: one cell for each dataset, row and seed, at the row's best trial.

    Lists of layers hold paths, relative to the table's file or of layers that come with the
    package, and key=value as on the command line of `cdp_torchrec train`.
    """

    run_dir: Path | None = None
    """Directory of all cells and of the table; without it, runs/<name of the table's file>."""
    datasets: Mapping[str, tuple[str, ...]]
    """Layers of each dataset, by the name that the table shows."""
    models: Mapping[str, tuple[str, ...]]
    """Layers of each row, on top of those of the dataset, by the name that the table shows."""
    settings: tuple[str, ...] = ()
    """key=value for every cell, on top of all layers."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Seeds of the cells. The grid is searched with the first one."""
    seeds_of: Mapping[str, Annotated[tuple[Seed, ...], Field(min_length=1)]] = {}
    """Other seeds of some rows, such as more of them for those that matter; rows are compared on
    the seeds that they share."""
    grid: Mapping[str, tuple[Value, ...]] = {}
    """Values of some keys. Every row is trained at these combinations with the first seed, and
    with the other seeds at the one that is best on validation. Early stopping (trainer.patience)
    searches the number of passes by itself."""
    grid_of: Mapping[str, Mapping[str, tuple[Value, ...]]] = {}
    """Values of keys that one row alone has, such as the weight of its auxiliary loss: dealt to the
    row's trials, each value about as often as the others. They add no trial."""
    search: SearchConfig = SearchConfig()
    """How much of the grid is tried."""
    groups: Mapping[str, Annotated[tuple[str, ...], Field(min_length=2)]] = {}
    """Datasets that are seeds of one world, by the name that the table shows: samples of one
    population. Rows are searched on the first of them, and compared over all."""
    other_history: tuple[str, ...] = ()
    """Rows that may see another longest history than the rest, or none of which they could search,
    such as recurrent ones whose cost grows with every behaviour. All others must see the same."""
    reference: str
    """Row that the others are compared with."""
    floors: tuple[str, ...] = ()
    """Rows that are no baseline, such as reductions and variants of the reference."""
    without_history: str | None = None
    """Row at 0 % of the gap to the Bayes scorer, where the dataset knows it."""
    gains: GainsConfig = GainsConfig()
    """The figure of gains."""
    caption: str = ""
    """Text below the tables, such as the paper's own numbers."""
    num_bootstrap: Annotated[int, Field(ge=50)] = 400
    """Replicates of the user bootstrap, which tell how much a metric owes to the test users: 400
    give the standard error within 4 %, 50 within 10 %. A finished cell keeps 21 bytes of each."""
    select: SelectConfig = SelectConfig()
    """Which cells are run now."""

    @property
    def rows_with_history(self) -> tuple[str, ...]:
        """The rows that tell of each other's noise.

        What the one without history lacks is worth more in one world than in another.
        """
        return tuple(name for name in self.models if name != self.without_history)

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = [*self._bad_names(), *self._unknown_names()]
        if not self.datasets:
            conflicts.append(("datasets", "names no dataset"))
        if self.reference in self.floors:
            conflicts.append(("reference", "is one of floors"))
        if len(set(self.floors)) < len(self.floors):
            conflicts.append(("floors", "repeats a row"))
        seeds = {"seeds": self.seeds} | {f"seeds_of.{m}": s for m, s in self.seeds_of.items()}
        conflicts += [
            (key, "repeats a seed")
            for key, of_row in seeds.items()
            if len(set(of_row)) < len(of_row)
        ]
        conflicts += [*self._unpaired_rows(), *self._bad_grid(), *self._bad_groups()]
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    def _unpaired_rows(self) -> Iterator[tuple[str, str]]:
        reference = self.seeds_of.get(self.reference, self.seeds)
        for model in self.models:
            seeds = self.seeds_of.get(model, self.seeds)
            if not set(seeds) & set(reference):
                key = model if model in self.seeds_of else self.reference
                yield (
                    f"seeds_of.{key}",
                    f"'{model}' has seeds {list(seeds)} and the reference {list(reference)}: rows "
                    "are compared on seeds that they share, and there is none",
                )

    def _bad_grid(self) -> Iterator[tuple[str, str]]:
        own = {
            f"grid_of.{model}.{key}": values
            for model, grid in self.grid_of.items()
            for key, values in grid.items()
        }
        for key, values in ({f"grid.{key}": v for key, v in self.grid.items()} | own).items():
            if not values or len(set(map(repr, values))) < len(values):
                yield key, "needs at least one value, and none twice"
            elif any("/" in str(value) for value in values):
                yield key, "values name directories and have no '/'"
        combinations = math.prod(len(values) for values in self.grid.values())
        trials = self.search.trials or combinations
        if trials > combinations:
            yield "search.trials", f"grid has only {combinations} combinations"
        if self.search.seed and trials == combinations and not self.grid_of:
            yield "search.seed", "has no effect where all combinations of grid are tried"
        for model, grid in self.grid_of.items():
            for key, values in grid.items():
                if key in self.grid:
                    yield f"grid_of.{model}.{key}", "is a key of grid too"
                elif len(values) > trials:
                    yield f"grid_of.{model}.{key}", f"more values than the {trials} trials"

    def _bad_groups(self) -> Iterator[tuple[str, str]]:
        seen: dict[str, str] = {}
        for group, names in self.groups.items():
            if group in self.datasets:
                yield f"groups.{group}", "is the name of a dataset"
            for name in names:
                if name not in self.datasets:
                    yield f"groups.{group}", f"there is no '{name}' in datasets"
                elif name in seen:
                    yield f"groups.{group}", f"'{name}' stands twice, first in {seen[name]}"
                seen.setdefault(name, group)

    def _bad_names(self) -> list[tuple[str, str]]:
        tables = {"datasets": self.datasets, "models": self.models}
        return [
            (f"{table}.{name}", "names a directory: use letters, digits, '_', '.', '+' and '-'")
            for table, names in tables.items()
            for name in names
            if not _NAME.fullmatch(name)
        ] + [
            (f"{table}.{taken}", f"is the directory of the {what}")
            for table, taken, what in (
                ("models", UNTRAINED, "untrained scorers"),
                ("datasets", CELLS, "finished cells"),
            )
            if taken in tables[table]
        ]

    def _unknown_names(self) -> list[tuple[str, str]]:
        named = {
            "reference": (self.reference,),
            "floors": self.floors,
            "without_history": (self.without_history,) if self.without_history else (),
            "seeds_of": tuple(self.seeds_of),
            "grid_of": tuple(self.grid_of),
            "other_history": self.other_history,
            "gains.over": self.gains.over,
            **{f"gains.rows.{axis}": tuple(rows) for axis, rows in self.gains.rows.items()},
            "select.models": self.select.models or (),
        }
        conflicts = [
            (key, f"there is no row '{name}' in models, only {', '.join(self.models)}")
            for key, names in named.items()
            for name in names
            if name not in self.models
        ]
        tables = (*self.groups, *self.datasets)
        drawn = {f"gains.dials.{axis}": names for axis, names in self.gains.dials.items()} | {
            "gains.of": self.gains.of or (),
            "select.datasets": self.select.datasets or (),
        }
        return conflicts + [
            (key, f"there is no '{name}' in groups and datasets, only {', '.join(tables)}")
            for key, names in drawn.items()
            for name in names
            if name not in tables
        ]
