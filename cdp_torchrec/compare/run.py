"""Runs the cells of a table that are selected and not finished; collective on all ranks."""

import gc
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cdp_torchrec.compare.cells import Cell, Table
from cdp_torchrec.compare.chances import chances_markdown, update_chances
from cdp_torchrec.compare.choice import best_point
from cdp_torchrec.compare.ideal_gap import OBSERVER_ERROR
from cdp_torchrec.compare.measure import NoValidationError, measure_cost
from cdp_torchrec.compare.results import (
    Origin,
    forget_failure,
    read_origin,
    read_result,
    result_of,
    write_failure,
    write_result,
)
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.keys import dotted, tables_of
from cdp_torchrec.config.toml_file import UnreadableError, read_toml
from cdp_torchrec.data.config import TEST
from cdp_torchrec.data.manifest import read_manifest
from cdp_torchrec.data.soft_labels import digest_of
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.rank_zero import from_rank_zero, on_all_ranks
from cdp_torchrec.environment import release
from cdp_torchrec.experiment import prepare_synthetic, train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig, check_against_data
from cdp_torchrec.ideal_scorer import IDEAL, ideal_scorer
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.reference_scorers import reference_reports
from cdp_torchrec.run.config import RunConfig
from cdp_torchrec.run.finite import NonFiniteError
from cdp_torchrec.run.lock import RunInUseError, locked
from cdp_torchrec.run.saved import CHECKPOINTS, CONFIG, saved_checkpoints
from cdp_torchrec.whole_file import whole_directory

_PLACES = ("data.dir", "data.soft_labels.file")
"""Keys that say where files lie, which decides nothing."""
_Shared = TypeVar("_Shared")
_OF_ALL_RANKS = (ConfigError, NonFiniteError, NoValidationError)
"""What is sure to end a cell on all ranks; of anything else the others wait in a collective."""


def run_table(
    table: Table, device: torch.device, *, announce: Callable[[str], None] | None = None
) -> dict[str, str]:
    """Run what is selected and not finished.

    Args:
        table: the table.
        device: where this rank computes.
        announce: told the table of chances on rank 0, before the first cell runs.

    Returns:
        The cells that failed or were left to another process, each with the reason.

    Raises:
        ConfigError: a cell does not fit its dataset, a dataset is missing, or a directory holds a
            cell of another configuration; found before the first cell runs.
    """
    _check(table)
    _by_rank_zero(lambda: update_chances(table))
    if announce is not None and is_rank_zero():
        announce(chances_markdown(table))
    failures: list[tuple[Cell, str]] = []
    total = sum(1 for _ in _turns(table))
    with ProgressBar("compare", total=total, unit="cells", active=is_rank_zero(), keep=True) as bar:
        for cell in _schedule(table):
            if isinstance(cell, str):
                bar.say(cell)
                bar.skip()
            elif _by_rank_zero(lambda cell=cell: _is_finished(cell)):
                bar.skip()
            else:
                bar.note(cell.name)
                reason = _attempt(cell, device, num_bootstrap=table.config.num_bootstrap)
                if reason is not None:
                    failures.append((cell, reason))
                bar.advance()
    # A process beside this one may have finished a cell that it was at when this one came to it.
    return {
        cell.name: reason
        for cell, reason in failures
        if not _by_rank_zero(lambda cell=cell: _is_finished(cell))
    }


def _schedule(table: Table) -> Iterator[Cell | str]:
    """The selected cells, seed by seed, so that an interrupted table has all rows.

    A text stands for a cell that cannot be run because the search of its grid point has failed, or
    is not over. The choice is made when the cell's turn comes.
    """
    for dataset in table.selected_datasets:
        _measure_untrained(table, dataset)
    for turn in _turns(table):
        if isinstance(turn, Cell):
            yield turn
            continue
        dataset, model, seed = turn
        point = _by_rank_zero(lambda chosen=(table, dataset, model): best_point(*chosen))
        if point is not None:
            yield table.cell(dataset, model, point, seed)
            continue
        searched = table.searched_dataset(dataset)
        yield (
            f"not run: {dataset}/{model}, seed {seed}: its trials on {searched}, which choose the "
            "grid point, have failed or are not finished"
        )


def _turns(table: Table) -> Iterator[Cell | tuple[str, str, int]]:
    """Trials, and (dataset, model, seed) of cells at the grid point that they will choose."""
    for dataset in table.selected_datasets:
        is_searched = table.searched_dataset(dataset) == dataset
        if is_searched:
            for model in table.selected_models:
                yield from table.tuning_cells(dataset, model)
        rows = {model: table.seeds(model)[is_searched:] for model in table.selected_models}
        for place in range(max(map(len, rows.values()), default=0)):
            for model, seeds in rows.items():
                if place < len(seeds):
                    yield dataset, model, seeds[place]


def _attempt(cell: Cell, device: torch.device, *, num_bootstrap: int) -> str | None:
    """Train and measure a cell; returns why it failed, if it did."""
    try:
        with _held(cell) as is_to_run:
            return _run(cell, device, num_bootstrap=num_bootstrap) if is_to_run else None
    except RunInUseError as error:
        # What becomes of the cell is the other process's affair, and so is the choice behind it.
        return str(error)


@contextmanager
def _held(cell: Cell) -> Generator[bool]:
    """Keep other processes from a cell until its result is written; whether it has none yet.

    A run that is trained and not measured is free by its own lock, and whoever went on with it
    would put the cost of nothing in place of that of the training.
    """
    lock = cell.directory.with_name(f"{cell.directory.name}.lock")

    def hold() -> bool:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(cell.directory, file=lock))
        held.callback(lock.unlink, missing_ok=True)
        return not _is_finished(cell)

    with ExitStack() as held:
        yield _by_rank_zero(hold)


def _run(cell: Cell, device: torch.device, *, num_bootstrap: int) -> str | None:
    resume = _by_rank_zero(lambda: _prepare(cell.directory))
    run = RunConfig(dir=cell.directory, resume=resume)
    begun = time.process_time()
    try:
        trained = train_experiment(
            cell.config.model_copy(update={"run": run}),
            device,
            num_bootstrap=num_bootstrap,
            quiet=True,
            way_on="the same line goes on",
        )
        cpu_s = sum(on_all_ranks(lambda: time.process_time() - begun))
        cost = measure_cost(trained, cpu_s=cpu_s)
        if cost is not None:
            write_result(cell.file, result_of(trained.report, cost), _origin(cell.config))
    except RunInUseError:
        raise
    except Exception as error:
        if dist.get_world_size() > 1 and not isinstance(error, _OF_ALL_RANKS):
            raise
        reason = f"{type(error).__name__}: {error}"
        if is_rank_zero():
            write_failure(cell.directory, reason, traceback.format_exc())
        return reason
    finally:
        gc.collect()  # a sharded model is a web of cycles, with its tables in it
    return None


def _prepare(directory: Path) -> bool:
    """Make a directory ready for another attempt; whether it has something to continue from."""
    forget_failure(directory)
    return bool(saved_checkpoints(directory / CHECKPOINTS))


def _is_finished(cell: Cell) -> bool:
    return read_result(cell.file) is not None


def _origin(config: ExperimentConfig) -> Origin:
    return Origin(release=release(), files=_files(config), config=_settings(config))


def _files(config: ExperimentConfig) -> str:
    """Digest of what is read: of the dataset, and of soft labels."""
    digest, soft_labels = read_manifest(config.data.dir).digest, config.data.soft_labels
    return f"{digest}-{digest_of(soft_labels)}" if soft_labels else digest


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """What decides a cell, as JSON; where its files lie does not, what is in them does."""
    settings = tables_of(config)
    del settings["run"], settings["data"]["dir"]
    settings["data"].get("soft_labels", {}).pop("file", None)
    return settings


def _measure_untrained(table: Table, dataset: str) -> None:
    directory = table.untrained_directory(dataset)
    if _by_rank_zero(directory.is_dir):
        return
    config = table.any_config(dataset)
    ideal = ideal_scorer(config.data.dir) if config.data.test_on == TEST else None
    reports = reference_reports(config.data, num_bootstrap=table.config.num_bootstrap, ideal=ideal)
    if is_rank_zero():
        origin = replace(_origin(config), config=None)
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_directory(directory) as partial:
                for name, report in reports.items():
                    result = result_of(report, None)
                    if ideal is not None and name == IDEAL:
                        error = {OBSERVER_ERROR: ideal.gauc_error}
                        result = replace(result, metrics={**result.metrics, **error})
                    write_result(partial / f"{name}.json", result, origin)
        except OSError:
            if not directory.is_dir():  # else a process beside this one was first
                raise


# --- checks before the first cell ----------------------------------------------------------------


def _check(table: Table) -> None:
    if problems := _by_rank_zero(lambda: [*table.missing_datasets(), *_foreign_cells(table)]):
        raise ConfigError.of(problems)
    for dataset in table.selected_datasets:
        prepare_synthetic(table.any_config(dataset).data)
    problems = {}
    for (dataset, model, _), config in table.configs.items():
        if dataset in table.selected_datasets and model in table.selected_models:
            try:
                check_against_data(config, dist.get_world_size())
            except ConfigError as error:
                for line in str(error).splitlines()[1:]:
                    problems.setdefault(f"{line.strip()} (in {dataset}/{model})")
    if problems:
        raise ConfigError.of(problems)
    if problems := _by_rank_zero(lambda: [*_other_files(table)]):
        raise ConfigError.of(problems)


def _foreign_cells(table: Table) -> Iterator[str]:
    """Cells whose stored configuration is not what the table asks for."""
    for cell in table.cells():
        begun = cell.directory / CONFIG
        if (origin := read_origin(cell.file)) is not None and origin.config is not None:
            result = read_result(cell.file)
            assert result is not None, "it has an origin"
            place, stored = cell.file, dotted(origin.config)
            stored["num_bootstrap"] = int(result.metrics["num_bootstrap"])
        elif begun.is_file():
            try:
                place, stored = cell.directory, dotted(read_toml(begun))
            except UnreadableError as error:
                yield f"{begun}: {error}: remove {cell.directory}"
                continue
        else:
            continue
        asked = dotted(_settings(cell.config))
        if "num_bootstrap" in stored:
            asked["num_bootstrap"] = table.config.num_bootstrap
        for key in sorted(stored | asked):
            old, new = stored.get(key, "unset"), asked.get(key, "unset")
            if old != new and not key.startswith("run.") and key not in _PLACES:
                yield _foreign(place, key, old, new)
                break
    asked = table.config.num_bootstrap
    for dataset in table.config.datasets:
        for path in table.untrained_directory(dataset).glob("*.json"):
            result = read_result(path)
            if result is not None and (old := int(result.metrics["num_bootstrap"])) != asked:
                yield _foreign(path.parent, "num_bootstrap", old, asked)
                break


def _foreign(place: Path, key: str, old: Any, asked: Any) -> str:
    return (
        f"{place}: holds a cell with {key} = {old}, the table asks for {asked}: remove it, or "
        "choose another run_dir"
    )


def _other_files(table: Table) -> Iterator[str]:
    """Finished cells of selected datasets that were measured on other files than there are now."""
    for dataset in table.selected_datasets:
        of_dataset = table.any_config(dataset)
        read = {cell.file: cell.config for cell in table.cells() if cell.dataset == dataset}
        read |= dict.fromkeys(table.untrained_directory(dataset).glob("*.json"), of_dataset)
        for path, config in read.items():
            origin = read_origin(path)
            if origin is not None and origin.files != _files(config):
                yield (
                    f"{path}: was measured on other files than {config.data.dir} has now, or on "
                    "other soft labels: they were made again; remove the cells of this dataset, or "
                    "choose another run_dir"
                )
                break


def _by_rank_zero(find: Callable[[], _Shared]) -> _Shared:
    """What rank 0 finds or makes on disk, so that all ranks take the same way; collective."""
    return from_rank_zero(find, purpose="use the table's directory")
