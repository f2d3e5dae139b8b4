"""The cells of a table: what is trained, with which configuration, in which directory."""

import itertools
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdp_torchrec.compare.config import CELLS, UNTRAINED, CompareConfig
from cdp_torchrec.compare.histories import unequal_histories
from cdp_torchrec.compare.search import GridPoint, trials
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.layers import COMMAND_LINE
from cdp_torchrec.config.shipped import find_beside
from cdp_torchrec.data.own_starter import check_starters
from cdp_torchrec.data.schema import SCHEMA
from cdp_torchrec.distributed.config import RanksConfig
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.run.config import RunConfig


@dataclass(frozen=True)
class Cell:
    """One training: a row on a dataset at a grid point with a seed."""

    dataset: str
    model: str
    point: GridPoint
    config: ExperimentConfig
    file: Path
    """Where the finished cell is kept."""

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.config.seed

    @property
    def directory(self) -> Path:
        """Run directory."""
        assert self.config.run.dir is not None
        return self.config.run.dir

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.dataset}/{self.model}/{self.point.name}/seed-{self.seed}"


@dataclass(frozen=True)
class Table:
    """A table and all its possible cells, checked."""

    config: CompareConfig
    run_dir: Path
    command: str
    """What made it."""
    configs: dict[tuple[str, str, GridPoint], ExperimentConfig]
    """By dataset, row and grid point."""

    def points(self, model: str) -> tuple[GridPoint, ...]:
        """The trials of a row."""
        return trials(self.config, model)

    def seeds(self, model: str) -> tuple[int, ...]:
        """The seeds of a row; its trials have the first one."""
        return self.config.seeds_of.get(model, self.config.seeds)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of all rows."""
        return tuple(sorted({seed for model in self.config.models for seed in self.seeds(model)}))

    def searched_dataset(self, dataset: str) -> str:
        """Where the grid point of a dataset's rows is chosen: the first of its group, or itself."""
        groups = (names for names in self.config.groups.values() if dataset in names)
        return next(groups, (dataset,))[0]

    @property
    def selected_datasets(self) -> tuple[str, ...]:
        """Datasets to run now, in the table's order."""
        chosen = self.config.select.datasets
        if chosen is None:
            return tuple(self.config.datasets)
        wanted = {one for name in chosen for one in self.config.groups.get(name, (name,))}
        return tuple(name for name in self.config.datasets if name in wanted)

    @property
    def selected_models(self) -> tuple[str, ...]:
        """Rows to run now, in the table's order."""
        chosen = self.config.select.models
        return tuple(name for name in self.config.models if chosen is None or name in chosen)

    def cell(self, dataset: str, model: str, point: GridPoint, seed: int) -> Cell:
        """One cell."""
        place = Path(dataset, model, point.name, f"seed-{seed}")
        directory = self.run_dir / place
        config = self.configs[dataset, model, point].model_copy(
            update={"seed": seed, "run": RunConfig(dir=directory)}
        )
        return Cell(dataset, model, point, config, self.run_dir / CELLS / f"{place}.json")

    def tuning_cells(self, dataset: str, model: str) -> list[Cell]:
        """The cells by which a row's grid point on a dataset is chosen, one for each trial."""
        searched, seed = self.searched_dataset(dataset), self.seeds(model)[0]
        return [self.cell(searched, model, point, seed) for point in self.points(model)]

    def chosen_cells(self, dataset: str, model: str, point: GridPoint) -> list[Cell]:
        """The cells of a row at its grid point, one for each seed."""
        return [self.cell(dataset, model, point, seed) for seed in self.seeds(model)]

    def cells(self) -> Iterator[Cell]:
        """All cells that could be asked for: every trial with every seed."""
        for dataset, model, point in self.configs:
            yield from self.chosen_cells(dataset, model, point)

    def untrained_directory(self, dataset: str) -> Path:
        """Where the results of the untrained scorers lie."""
        return self.run_dir / CELLS / dataset / UNTRAINED

    def missing_datasets(self) -> Iterator[str]:
        """What is wrong with selected datasets: not there, and not made on first use either."""
        for dataset in self.selected_datasets:
            data = self.any_config(dataset).data
            if data.synthetic is None and not (data.dir / SCHEMA).is_file():
                yield f"data.dir = '{data.dir}': there is no dataset (in {dataset})"

    def any_config(self, dataset: str) -> ExperimentConfig:
        """A configuration that names the dataset's directory."""
        return self.first_config(dataset, self.config.reference)

    @property
    def ranks(self) -> RanksConfig:
        """How long the ranks wait for one another, in all cells."""
        return next(iter(self.configs.values())).ranks

    def first_config(self, dataset: str, model: str) -> ExperimentConfig:
        """The configuration of a row's first trial."""
        return self.configs[dataset, model, self.points(model)[0]]


def load_table(arguments: Sequence[str]) -> Table:
    """Read a table's file and the configurations of all its cells.

    Args:
        arguments: the table's file, perhaps with layers on top, and key=value.

    Raises:
        ConfigError: every mistake in the table, or else in any of the cells.
    """
    files = [Path(a) for a in arguments if a.endswith(".toml") and "=" not in a]
    if not files:
        raise ConfigError.of(["found no table, expected: compare.py configs/compare/table1.toml"])
    config = load_config(CompareConfig, arguments)
    problems: dict[str, list[str]] = defaultdict(list)
    configs = {}
    wanted = (
        (dataset, model, point)
        for dataset, model in itertools.product(config.datasets, config.models)
        for point in trials(config, model)
    )
    for dataset, model, point in wanted:
        layers = [*config.datasets[dataset], *config.models[model]]
        layers = [_relative_to(files[0].parent, layer) for layer in layers]
        try:
            cell = load_config(ExperimentConfig, [*layers, *config.settings, *point.settings])
            check_starters([*layers, *config.settings], cell.data.dir)
            _check_cell(cell)
        except ConfigError as error:
            for line in str(error).splitlines()[1:]:
                problems[_of_table(line)].append(f"{dataset}/{model}/{point.name}")
        else:
            configs[dataset, model, point] = cell
    problems.update(_unequal_rows(configs))
    problems = problems or unequal_histories(config, configs)
    if problems:
        raise ConfigError.of([f"{line} ({_listed(cells)})" for line, cells in problems.items()])
    run_dir = config.run_dir or Path("runs") / files[0].stem
    command = shlex.join(["cdp_torchrec", "compare", *arguments])
    return Table(config, run_dir, command, configs)


def _of_table(line: str) -> str:
    """A mistake of a cell, whose key=value stands in the table."""
    bracketed = line.strip().replace(f"[{COMMAND_LINE}]", "[the table]")
    return bracketed.replace(f"on the {COMMAND_LINE}", "in the table")


def _relative_to(folder: Path, layer: str) -> str:
    is_path = layer.endswith(".toml") and "=" not in layer
    return str(find_beside(folder, layer)) if is_path else layer


def _check_cell(config: ExperimentConfig) -> None:
    problems = []
    if config.run != RunConfig():
        problems.append("run: every cell has a directory of its own; remove it from the layers")
    if config.seed != 0:
        problems.append("seed: is set by seeds of the table; remove it from the layers")
    if not config.data.validation_fraction:
        problems.append("data.validation_fraction = 0: a comparison chooses on validation")
    if problems:
        raise ConfigError.of(problems)


def _unequal_rows(
    configs: dict[tuple[str, str, GridPoint], ExperimentConfig],
) -> dict[str, list[str]]:
    """Rows that read, test, validate or choose otherwise than the first row of their dataset."""
    first: dict[tuple[str, str], object] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for (dataset, model, point), config in configs.items():
        for key, value in {
            "data.dir": str(config.data.dir),
            "data.train_on": list(config.data.train_on),
            "data.test_on": config.data.test_on,
            "data.validation_fraction": config.data.validation_fraction,
            "data.exclude_features": config.data.exclude_features,
            "model.interaction.exclude": config.model.interaction.exclude,
            "trainer.validation_metric": config.trainer.validation_metric,
            "ranks.silence_limit_s": config.ranks.silence_limit_s,
            "ranks.collective_timeout_s": config.ranks.collective_timeout_s,
        }.items():
            # The ranks are those of the whole table.
            scope = "" if key.startswith("ranks.") else dataset
            expected = first.setdefault((scope, key), value)
            if value != expected:
                line = f"{key} = {value}: must be the same in all rows, others have {expected}"
                problems[line].append(f"{dataset}/{model}/{point.name}")
    return problems


def _listed(cells: list[str]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"in {cells[0]}{more}"
