"""GAUC of one score, added up over whole requests."""

from dataclasses import dataclass

import numpy as np

from cdp_torchrec.metrics import grouped_auc


@dataclass
class RankedBy:
    """The impression-weighted mean of the AUC within a request."""

    weighted: float = 0.0
    impressions: int = 0

    def add(self, score: np.ndarray, clicked: np.ndarray, request: np.ndarray) -> None:
        """Add whole requests."""
        found = grouped_auc(score, clicked, request)
        both = ~np.isnan(found.auc)
        self.weighted += float((found.auc * found.num_impressions)[both].sum())
        self.impressions += int(found.num_impressions[both].sum())

    @property
    def gauc(self) -> float:
        """NaN without a request that has both labels."""
        return self.weighted / self.impressions if self.impressions else float("nan")
