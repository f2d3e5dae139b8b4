"""Scores of raw requests from an exported artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cdp_torchrec.data.schema import Feature
from cdp_torchrec.serving.request import Request


@dataclass(frozen=True)
class PredictorMetadata:
    """What an artifact serves."""

    name: str
    """Name of the dataset, then of the interest module, such as "trivago-cdp"."""
    version: str
    """Digest of the artifact: two artifacts that may score differently have different ones."""
    device: str
    """"cpu" or "cuda", where the ranker was compiled for."""
    features: Mapping[str, Feature]
    """Inputs by name: role, level ("request" or "candidate") and kind ("id", "ids", "number")."""
    required_candidate_features: tuple[str, ...]
    """Candidate features that every request must give."""
    history_columns: tuple[str, ...]
    """Lists that `Request.history` must or may have: "item", "timestamp_ms", ..."""
    max_candidates: int
    """Longest candidate list of a request."""
    max_history: int
    """Most behaviours that a request may bring."""
    has_history_store: bool
    """Whether a request without behaviours gets those of a store."""


class Predictor:
    """Scores requests. Safe to share by threads; the same request always scores the same."""

    @classmethod
    def open(
        cls, directory: Path, *, history_store: Path | None = None, num_runners: int = 1
    ) -> Self:
        """Load an artifact, verify it, and re-score its golden request.

        Args:
            directory: written by launch/export.py.
            history_store: dataset directory whose `history/` answers for requests without
                behaviours; it must have been prepared with the artifact's vocabularies. None: such
                requests have an empty history.
            num_runners: dense computations that may run at the same time; further threads wait.

        Raises:
            ArtifactError: a file is missing or altered, the versions do not fit, the store belongs
                to other vocabularies, or the golden request scores differently.
        """
        raise NotImplementedError

    @property
    def metadata(self) -> PredictorMetadata:
        """What the artifact serves: inputs and limits."""
        raise NotImplementedError

    def score(self, request: Request) -> np.ndarray:
        """Click probability of each candidate, float32 [num_candidates].

        Raises:
            RequestError: the request is not valid; its `field` names the culprit.
        """
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """As `score` for several requests at once: one array for each, in their order.

        Raises:
            RequestError: one of the requests is not valid. Nothing is scored then, so that a server
                which batches calls `check` on every request first.
        """
        raise NotImplementedError

    def check(self, request: Request) -> None:
        """Whether `score` would accept the request.

        Raises:
            RequestError: it would not.
        """
        raise NotImplementedError
