"""What validation decides: the grid point of each row, and which baseline is the strongest.

Nothing here looks at the test split.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cdp_torchrec.compare.cells import Cell, Table
from cdp_torchrec.compare.ideal_gap import Runs
from cdp_torchrec.compare.results import Result, TrainingCost, read_failure, read_result
from cdp_torchrec.compare.search import GridPoint


def best_point(table: Table, dataset: str, model: str) -> GridPoint | None:
    """The grid point with the best validation metric at the first seed; of equals, the first.

    Failed cells do not take part. None while a cell has neither finished nor failed, or if all
    have failed; but a search of one trial is over before it is run.
    """
    scores: dict[GridPoint, float] = {}
    trials = table.tuning_cells(dataset, model)
    for cell in trials:
        result = read_result(cell.file)
        if result is not None:
            scores[cell.point] = _goodness(cell, result)
        elif read_failure(cell.directory) is None:
            return cell.point if len(trials) == 1 else None
    return max(scores, key=lambda point: scores[point], default=None)


def strongest_baseline(table: Table, dataset: str, runs: Mapping[str, Runs]) -> str | None:
    """The baseline with the best mean validation metric over the runs that all of them have.

    A run is of a world and a seed; rows of an unfinished table, and those with other seeds, have
    some of them. None without a common one.

    Args:
        table: says which rows are no baseline.
        dataset: whose rows.
        runs: of all rows.
    """
    by_place = {
        model: {(world, seed): r for world, seeds in of_row.items() for seed, r in seeds.items()}
        for model, of_row in runs.items()
        if of_row and model != table.config.reference and model not in table.config.floors
    }
    common = set.intersection(*map(set, by_place.values())) if by_place else set()
    if not common:
        return None
    sign = _sign(table.any_config(dataset).trainer.validation_metric)

    def goodness(model: str) -> float:
        return sign * mean_validation([by_place[model][place] for place in common])

    return max(by_place, key=goodness)


def mean_validation(results: Sequence[Result]) -> float:
    """Mean over the runs of the best validation metric."""
    return float(np.mean([_cost(result).validation for result in results]))


def _goodness(cell: Cell, result: Result) -> float:
    return _cost(result).validation * _sign(cell.config.trainer.validation_metric)


def _cost(result: Result) -> TrainingCost:
    assert result.cost is not None, "an untrained scorer has no validation"
    return result.cost


def _sign(metric: str) -> float:
    return -1.0 if metric == "log_loss" else 1.0
