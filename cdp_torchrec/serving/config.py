"""Settings of an export."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from cdp_torchrec.config import Config, load_toml
from cdp_torchrec.experiment_config import ExperimentConfig

TableStorage = Literal["float32", "float16", "int8"]
_TOLERANCE: dict[TableStorage, float] = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}
_TOLERANCE_BFLOAT16 = 2e-2


class ExportConfig(Config):
    """What the artifact is like, and how it is checked."""

    tables: TableStorage = "float32"
    """Precision of the embedding tables; "int8" is quantized row by row."""
    table_shards: PositiveInt = 1
    """Files that the rows of each table are spread over."""
    max_candidates: PositiveInt = 1000
    """Longest candidate list of a request."""
    max_history: PositiveInt = 10_000
    """Most behaviours that a request may bring along."""
    parity_impressions: PositiveInt = 20_000
    """Impressions of the test split that are scored by the trainer's path and by the artifact."""
    tolerance: PositiveFloat | None = None
    """Largest difference in probability between both; above it nothing is exported. 1e-5 if not
    given, and for the drift of float16 tables 1e-3, of int8 tables or a bfloat16 model 2e-2."""
    signing_key: Path | None = None
    """PEM file of an Ed25519 private key that signs the artifact, for servers with trusted_keys."""


class SignatureConfig(Config):
    """Who made something."""

    signing_key: Path | None = None
    """PEM file of an Ed25519 private key that signs it, for servers with trusted_keys."""


class DeltaConfig(Config):
    """Settings of a delta between two artifacts, which are as they were exported."""

    export: SignatureConfig = SignatureConfig()
    """Its signature."""


class ExportedConfig(ExperimentConfig):
    """A run's configuration and that of its export."""

    export: ExportConfig = ExportConfig()
    """The artifact."""

    @classmethod
    def read(cls, artifact: Path) -> "ExportedConfig":
        """Configuration of an artifact."""
        return load_toml(cls, artifact / "config.toml")

    @property
    def tolerance(self) -> float:
        """Largest difference in probability that the parity gate lets pass."""
        if self.export.tolerance is not None:
            return self.export.tolerance
        tolerance = _TOLERANCE[self.export.tables]
        return max(tolerance, _TOLERANCE_BFLOAT16) if self.is_bfloat16 else tolerance

    @property
    def is_bfloat16(self) -> bool:
        """Whether the dense part computes in bfloat16."""
        return self.model.precision == "bfloat16"
