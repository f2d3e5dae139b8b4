"""The ideal observer as a scorer of a simulated dataset's test split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import ValidationError

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.data.synthetic.config import recorded_config
from cdp_torchrec.data.synthetic.ideal_observer import IdealScores, ideal_scores
from cdp_torchrec.data.synthetic.log import SimulatedLog, simulate_log
from cdp_torchrec.data.synthetic.oracle_ladder import climb
from cdp_torchrec.data.synthetic.world import Ints
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.text_table import aligned_table

IDEAL, WITHOUT_HISTORY = "ideal", "ideal_no_history"
"""Names of the scorers: with and without a look at the behaviours before the request."""


class IdealScorer:
    """Scores of the ideal observer, ready to be looked up by impression."""

    names = (WITHOUT_HISTORY, IDEAL)

    def __init__(self, scores: IdealScores, first_request: int, place: Ints) -> None:
        """Keep the scores.

        Args:
            scores: in the order of the test split.
            first_request: number of its first request.
            place: of each code of the feature `position`, from 0 on.
        """
        self._scores = {WITHOUT_HISTORY: scores.without_history, IDEAL: scores.probability}
        self._first = first_request
        self._place = place
        self.gauc_error = scores.gauc_error
        """Standard error of the GAUC of `ideal` by the random numbers of its two runs."""

    def score(self, name: str, impressions: Impressions) -> np.ndarray:
        """Scores of some impressions of the test split, [B]."""
        request = impressions.request["request_id"][impressions.request_index] - self._first
        return self._scores[name][request, self._place[impressions.candidate["position"]]]


def ideal_scorer(dataset: Path) -> IdealScorer | None:
    """The ideal observer of a dataset; None if it was not simulated; collective.

    Simulates the world again and follows all behaviours of the users of the test split, on rank 0.

    Args:
        dataset: dataset directory.

    Raises:
        DatasetError: the dataset is incomplete, or another release has simulated it.
    """
    return from_rank_zero(lambda: _observe(dataset), purpose="follow the simulated log")


def oracle_ladder(dataset: Path) -> str:
    """One line for each rung of the ladder of oracle features; collective.

    Args:
        dataset: dataset directory.

    Raises:
        ConfigError: the dataset was not simulated.
        DatasetError: the dataset is incomplete, or another release has simulated it.
    """
    return from_rank_zero(lambda: _climb(dataset), purpose="climb the ladder")


def simulated_again(dataset: Path) -> tuple[SimulatedLog, Ints] | None:
    """The log of a simulated dataset, and where each request of its test split is in it, [N].

    None if the dataset was not simulated.

    Raises:
        DatasetError: the dataset is incomplete, or another release has simulated it.
    """
    schema = load_schema(dataset)
    other = f"{dataset}: another release has simulated this log; make it again"
    try:
        config = recorded_config(schema.source)
    except ValidationError as error:
        raise DatasetError(other) from error
    if config is None:
        return None
    log = simulate_log(config, active=is_rank_zero())
    test = pq.read_table(dataset / "test", columns=["request_id", "click_probability"])
    raw = pq.read_table(dataset / "vocabulary" / "request.parquet")["raw"].to_numpy()
    row = raw[test["request_id"].to_numpy()].astype(np.int64) - log.num_earlier
    found = test["click_probability"].combine_chunks().flatten().to_numpy()
    truth = log.requests.click_probability
    if not np.array_equal(np.sort(row), np.arange(len(truth))) or not np.allclose(
        found, truth[row].ravel(), atol=1e-6
    ):
        raise DatasetError(other)
    return log, row


def _climb(dataset: Path) -> str:
    again = simulated_again(dataset)
    if again is None:
        raise ConfigError(f"--ladder: {dataset} was not simulated, so nobody knows its tastes")
    rows = [["features", "GAUC"], *([rung.name, f"{rung.gauc:.4f}"] for rung in climb(again[0]))]
    return aligned_table(rows)


def _observe(dataset: Path) -> IdealScorer | None:
    again = simulated_again(dataset)
    if again is None:
        return None
    log, row = again
    schema = load_schema(dataset)
    scores = ideal_scores(log, active=is_rank_zero())
    in_order = IdealScores(
        probability=scores.probability[row],
        without_history=scores.without_history[row],
        gauc_error=scores.gauc_error,
    )
    path = dataset / "vocabulary" / f"{schema.feature('position').entity}.parquet"
    raw = pq.read_table(path, columns=["raw"])["raw"].to_numpy().astype(np.int64)
    return IdealScorer(in_order, schema.splits["train"].requests, np.append(0, raw - 1))
