"""The proof that an artifact scores like the trainer: the same impressions, from raw ids."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cdp_torchrec.data.request_files import Impressions
from cdp_torchrec.data.schema import Feature, Schema
from cdp_torchrec.metrics import ImpressionMetrics
from cdp_torchrec.progress import progress
from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.encode import USER_ENTITY, USER_FEATURE
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request, Value
from cdp_torchrec.serving.vocabulary import Vocabulary

_METRICS = ("auc", "uauc", "gauc")


@dataclass(frozen=True)
class Parity:
    """Scores of the trainer's path and of an artifact, compared."""

    num_impressions: int
    max_difference: float
    """In probability."""
    mean_difference: float
    trainer_auc: float
    trainer_uauc: float
    trainer_gauc: float
    artifact_auc: float
    artifact_uauc: float
    artifact_gauc: float

    def to_json(self) -> dict[str, float]:
        """By name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, float]) -> "Parity":
        """What `to_json` gave."""
        differences = {name: value for name, value in data.items() if name != "num_impressions"}
        return cls(num_impressions=int(data["num_impressions"]), **differences)

    def table(self) -> str:
        """For people."""
        lines = [
            f"{self.num_impressions:,} test impressions, difference in probability: at most "
            f"{self.max_difference:.2e}, mean {self.mean_difference:.2e}",
            f"{'':10}" + "".join(f"{name.upper():>10}" for name in _METRICS),
        ]
        rows = {side: self._metrics(side) for side in ("trainer", "artifact")}
        for side, values in rows.items():
            lines.append(f"{side:10}" + "".join(f"{value:10.6f}" for value in values))
        change = [a - t for t, a in zip(rows["trainer"], rows["artifact"], strict=True)]
        lines.append(f"{'change':10}" + "".join(f"{value:+10.6f}" for value in change))
        return "\n".join(lines)

    def _metrics(self, side: str) -> list[float]:
        return [getattr(self, f"{side}_{name}") for name in _METRICS]


def raw_requests(
    impressions: Impressions, schema: Schema, vocabularies: Mapping[str, Vocabulary]
) -> Iterator[Request]:
    """The requests of a log as a client would send them, without behaviours.

    Args:
        impressions: from the dataset.
        schema: its schema.
        vocabularies: by entity.
    """
    ends = np.cumsum(np.bincount(impressions.request_index))
    users = vocabularies[USER_ENTITY].raw(impressions.request["user_id"])
    of_request = [f for f in schema.features if f.level == "request" and f.name != USER_FEATURE]
    of_candidate = [f for f in schema.features if f.level == "candidate"]

    def raw(feature: Feature, column: np.ndarray) -> Sequence[Value]:
        if feature.entity is not None:
            return vocabularies[feature.entity].raw(column)
        return [None if math.isnan(value) else value for value in column.tolist()]

    single = {f.name: raw(f, impressions.request[f.name]) for f in of_request if f.kind != "ids"}
    candidate = {f.name: raw(f, impressions.candidate[f.name]) for f in of_candidate}
    for number, stop in enumerate(ends.tolist()):
        start = int(ends[number - 1]) if number else 0
        bags = {}
        for feature in (f for f in of_request if f.kind == "ids"):
            bag = impressions.bags[feature.name]
            codes = bag.values[bag.offsets[number] : bag.offsets[number + 1]]
            bags[feature.name] = raw(feature, codes)
        yield Request(
            user=users[number],
            timestamp_ms=int(impressions.request["timestamp"][number]),
            features={name: column[number] for name, column in single.items()} | bags,
            candidates={name: column[start:stop] for name, column in candidate.items()},
            request_id=int(impressions.request["request_id"][number]),
        )


def compare(predictor: Predictor, requests: list[Request], predictions: Path) -> Parity:
    """Score requests one by one, as in serving, and compare with the trainer; collective.

    Args:
        predictor: of the artifact, with the dataset's history store.
        requests: in the order of the trainer's predictions.
        predictions: what the trainer's path wrote for their impressions.
    """
    trainer = pq.read_table(predictions)
    scores = [predictor.score(request) for request in progress(requests, "parity", unit="requests")]
    artifact = np.concatenate(scores)
    expected = trainer["probability"].to_numpy()
    if len(artifact) != len(expected):
        raise ArtifactError(f"{len(artifact)} scores for {len(expected)} impressions")
    labels = torch.from_numpy(trainer["label"].to_numpy().astype(np.float32))
    groups = {name: _numbered(trainer[name]) for name in ("user_id", "request_id")}
    metrics = {}
    for side, probability in (("trainer", expected), ("artifact", artifact)):
        measured = ImpressionMetrics(strata={})
        measured.update(
            probability=torch.from_numpy(probability.copy()),
            labels=labels,
            user_id=groups["user_id"],
            request_id=groups["request_id"],
            weights=torch.ones(len(probability)),
            strata={},
        )
        report = measured.compute(num_bootstrap=0)
        metrics |= {f"{side}_{name}": getattr(report, name) for name in _METRICS}
    difference = np.abs(artifact.astype(np.float64) - expected)
    return Parity(
        num_impressions=len(artifact),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        **metrics,
    )


def _numbered(ids: pa.ChunkedArray) -> torch.Tensor:
    """A number for each distinct id, int64; a missing one counts as an id."""
    codes = ids.combine_chunks().dictionary_encode(null_encoding="encode").indices
    return torch.from_numpy(codes.to_numpy().astype(np.int64))
