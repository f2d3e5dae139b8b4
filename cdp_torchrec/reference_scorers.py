"""Untrained scorers that every trained model has to beat.

They go by what the schema says, not by names: the gate's feature is the category, and a context
feature that differs from candidate to candidate is where a candidate stood.

popularity           how often the item occurs in training
category_share       share of the user's behaviours so far in the candidate's category
category_click_rate  of the category, over the training impressions
<place>_click_rate   the same of each place, such as position_click_rate
last_touched         the item that the user touched last, then the others by place; in a log without
                     places, the more recently touched the higher
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from cdp_torchrec.coverage import own_chunks
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.days import read_schema, request_folder
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.tables.stored_vocabulary import training_counts
from cdp_torchrec.distributed.process_group import is_rank_zero
from cdp_torchrec.evaluation import STRATA, history_strata
from cdp_torchrec.ideal_scorer import IDEAL, IdealScorer, ideal_scorer
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport
from cdp_torchrec.metrics.ranks import Ranks
from cdp_torchrec.progress import progress

TRUTH = "bayes"
"""Name of the scorer that knows the true click probabilities, where the log has them."""
_TRUTH_COLUMN = "click_probability"
_PRIOR_IMPRESSIONS = 10.0
"""Impressions at the overall click rate that each rate starts with."""


class ReferenceScorers:
    """Scores in [0, 1] from a dataset alone."""

    def __init__(self, data: DataConfig) -> None:
        """Read the popularity of items, and count the clicks of the training split; collective.

        Args:
            data: the dataset, and which periods of it are read.

        Raises:
            DatasetError: the dataset is incomplete or damaged.
        """
        schema = read_schema(data)
        self._category = schema.gate_feature()
        places = place_features(schema)
        needed = {"item_id", self._category, *places}
        others = [f.name for f in schema.features if f.name not in needed]
        self.reader = DatasetReader(data.model_copy(update={"exclude_features": tuple(others)}))
        item = schema.history.item_entity
        counts = training_counts(data.dir, schema, item).astype(np.float64)
        self._popularity = np.append(0.0, counts / max(counts.max(initial=0.0), 1.0))
        features = [*([self._category] if self._category else []), *places]
        self._rates = self._click_rates(features)
        self._places = [f"{name}_click_rate" for name in places]
        self._rated = dict(zip(self._places, places, strict=True))
        self.names = ["popularity"]
        if self._category:
            self._rated["category_click_rate"] = self._category
            self.names += ["category_share", "category_click_rate"]
        self.names += [*self._places, "last_touched"]

    def score(self, name: str, impressions: Impressions) -> np.ndarray:
        """Scores of some impressions, [B]."""
        columns = impressions.candidate
        match name:
            case "popularity":
                return self._popularity[columns["item_id"]]
            case "category_share":
                return self._category_share(impressions)
            case "last_touched":
                rank = columns["history_rank"]
                if not self._places:
                    return np.where(rank >= 0, 1.0 / (1.0 + np.maximum(rank, 0)), 0.0)
                return 0.5 * ((rank == 0) + self.score(self._places[0], impressions))
            case _ if name in self._rated:
                feature = self._rated[name]
                return self._rates[feature][columns[feature]]
            case _:
                return columns[_TRUTH_COLUMN]

    def _category_share(self, impressions: Impressions) -> np.ndarray:
        assert self._category is not None
        index = impressions.request_index
        user, before, length = (
            impressions.request[name][index] for name in ("user_id", "timestamp", "history_length")
        )
        category = impressions.candidate[self._category].astype(np.int64)
        _, gated = self.reader.store.gated(user, category, before)
        return gated.lengths / np.maximum(length, 1)

    def _click_rates(self, features: Sequence[str]) -> dict[str, np.ndarray]:
        """Click rate of each code of some candidate features over all ranks' training impressions.

        Codes without impressions have the overall rate.
        """
        schema = self.reader.schema
        sizes = {name: 1 + self._num_ids(name) for name in features}
        counts = {name: np.zeros((2, size)) for name, size in sizes.items()}
        if not features:
            return {}
        chunks = own_chunks(self.reader.impressions("train"))
        for part in progress(chunks, "click rates", unit="chunks", active=is_rank_zero()):
            clicks = part.candidate["label"].astype(np.float64)
            for name, table in counts.items():
                codes = part.candidate[name]
                table[0] += np.bincount(codes, clicks, minlength=sizes[name])
                table[1] += np.bincount(codes, minlength=sizes[name])
        overall = schema.splits["train"].click_rate
        ranks, rates = Ranks(), {}
        for name, table in counts.items():
            clicks, shown = ranks.sum(table)
            rates[name] = (clicks + _PRIOR_IMPRESSIONS * overall) / (shown + _PRIOR_IMPRESSIONS)
        return rates

    def _num_ids(self, feature: str) -> int:
        schema = self.reader.schema
        return schema.entities[schema.feature(feature).entity or ""].num_ids


def place_features(schema: Schema) -> list[str]:
    """Context ids that differ from candidate to candidate: where a candidate stood in its list."""
    return [
        feature.name
        for feature in schema.features
        if (feature.role, feature.level, feature.kind) == ("context", "candidate", "id")
    ]


def evaluate_references(dataset: Path) -> str:
    """One table of AUC, UAUC and GAUC of every reference scorer on the test split; collective.

    Args:
        dataset: dataset directory.

    Raises:
        DatasetError: the dataset is incomplete or damaged.
    """
    ideal = ideal_scorer(dataset)
    lines = [f"{'scorer':<22}{'AUC':>8}{'UAUC':>8}{'GAUC':>8}   GAUC 95 % interval"]
    for name, report in reference_reports(DataConfig(dir=dataset), ideal=ideal).items():
        low, high = report.gauc_interval
        lines.append(
            f"{name:<22}{report.auc:8.4f}{report.uauc:8.4f}{report.gauc:8.4f}"
            f"   {low:.4f} .. {high:.4f}"
        )
    if ideal is not None:
        lines.append(
            f"{IDEAL}: standard error {ideal.gauc_error:.5f} of GAUC by its random numbers"
        )
    return "\n".join(lines)


def reference_reports(
    data: DataConfig, *, num_bootstrap: int = 200, ideal: IdealScorer | None = None
) -> dict[str, MetricReport]:
    """Metrics of every reference scorer on the test split, by its name; collective.

    Args:
        data: the dataset, and which periods of it are read.
        num_bootstrap: replicates of the user bootstrap.
        ideal: the dataset's ideal observer, to be measured too.

    Raises:
        DatasetError: the dataset is incomplete or damaged.
    """
    data = data.model_copy(update={"exclude_features": ()})
    scorers = ReferenceScorers(data)
    names, extra = list(scorers.names), []
    folder = request_folder(data.dir, data.test_on)
    part = next(iter(sorted(folder.glob("*.parquet"))), None)
    if part is not None and _TRUTH_COLUMN in pq.read_schema(part).names:
        names.append(TRUTH)
        extra.append(_TRUTH_COLUMN)
    observed = ideal.names if ideal is not None else ()
    names += observed
    metrics = {name: ImpressionMetrics(strata=STRATA) for name in names}
    chunks = own_chunks(scorers.reader.impressions("test", extra_columns=extra))
    for impressions in progress(chunks, "untrained scorers", unit="chunks", active=is_rank_zero()):
        request = {
            name: torch.from_numpy(column[impressions.request_index].astype(np.int64))
            for name, column in impressions.request.items()
            if name in ("user_id", "request_id", "history_length")
        }
        rank = torch.from_numpy(impressions.candidate["history_rank"].astype(np.int64))
        for name in names:
            scorer = ideal if ideal is not None and name in observed else scorers
            metrics[name].update(
                probability=torch.from_numpy(scorer.score(name, impressions)).float(),
                labels=torch.from_numpy(impressions.candidate["label"].astype(np.float32)),
                user_id=request["user_id"],
                request_id=request["request_id"],
                weights=torch.ones(len(rank)),
                strata=history_strata(request["history_length"], rank),
            )
    return {name: metrics[name].compute(num_bootstrap=num_bootstrap) for name in names}
