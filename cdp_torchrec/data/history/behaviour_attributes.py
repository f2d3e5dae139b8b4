"""What a log knows of a behaviour beside item, category and action: dwell time, price, tags ..."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from cdp_torchrec.config import Config

if TYPE_CHECKING:
    import numpy as np

LARGEST_DEVIATION = 1000.0
"""Standardised numbers end here, in training and serving alike: what a network multiplies a few
times must stay finite, whatever a request says."""
RESERVED_ATTRIBUTES = ("user_id", "item", "category", "action", "timestamp", "timestamp_ms")
"""Names of the other columns of behaviours."""
MOST_IDS = 64
"""Ids of one behaviour, at most."""

AttributeKind = Literal["id", "ids", "number"]
MaxIds = Annotated[int, Field(ge=1, le=MOST_IDS)]


def standardised(raw: "np.ndarray", *, mean: float, std: float) -> "np.ndarray":
    """Numbers as a model reads them, float64, same shape; 0, the mean, where one is missing.

    The result is finite and within LARGEST_DEVIATION for everything that a float64 can hold.
    """
    import numpy as np  # settings are read without it

    with np.errstate(over="ignore"):
        scaled = (raw - mean) / std
    bounded = np.minimum(np.maximum(scaled, -LARGEST_DEVIATION), LARGEST_DEVIATION)
    return np.where(np.isnan(bounded), 0.0, bounded)


class BehaviourAttribute(Config):
    """An attribute of each behaviour, which modules that read sequences see."""

    name: str
    """Column of the behaviours."""
    kind: AttributeKind
    """One id, several ids whose mean is taken, or a number."""
    entity: str | None = None
    """Id space of an "id" or of "ids"."""
    max_ids: MaxIds = 1
    """Most ids of one behaviour; 1 but for "ids". The store has room for so many in each."""
    mean: float = 0.0
    """Mean of a "number" over the behaviours before the test split."""
    std: float = 1.0
    """Standard deviation of a "number" over the behaviours before the test split."""

    @model_validator(mode="after")
    def _check(self) -> "BehaviourAttribute":
        if (self.kind == "number") == (self.entity is not None):
            raise ValueError(f"attribute '{self.name}': ids need an entity, numbers have none")
        if self.kind != "ids" and self.max_ids != 1:
            raise ValueError(f"attribute '{self.name}': max_ids is for kind 'ids'")
        if self.kind == "number" and not (0 < self.std < math.inf and math.isfinite(self.mean)):
            raise ValueError(
                f"attribute '{self.name}': mean must be finite and std positive, found "
                f"{self.mean}, {self.std}"
            )
        return self

    @property
    def file(self) -> str:
        """Name of its column in the store."""
        return f"attribute_{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of one value that it has in the engine: a number, or a code each."""
        if self.kind != "ids":
            return (self.file,)
        return tuple(f"{self.file}_{place}" for place in range(self.max_ids))

    @property
    def num_values(self) -> int:
        """Columns that it has in SequenceIndex.attributes."""
        return {"id": 0, "ids": self.max_ids, "number": 1}[self.kind]

    @property
    def meaning(self) -> str:
        """What a model takes its values for, in words that are equal where the meaning is."""
        what = f"ids of {self.entity}, at most {self.max_ids}"
        if self.kind == "number":
            what = f"mean {self.mean!r}, std {self.std!r}"
        return f"{self.kind} of each behaviour, {what}"

    def standardise(self, raw: "np.ndarray") -> "np.ndarray":
        """A "number" as the model reads it, float64; see `standardised`."""
        return standardised(raw, mean=self.mean, std=self.std)
