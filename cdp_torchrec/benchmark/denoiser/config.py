"""Settings of the benchmark of the reverse process."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from cdp_torchrec.config import Config
from cdp_torchrec.config.once import ONCE
from cdp_torchrec.diffusion.config import DenoiserConfig, NoiseScheduleConfig, PredictionType


class DenoiserSettings(Config):
    """What is measured."""

    candidates: Annotated[tuple[PositiveInt, ...], Field(min_length=1), ONCE] = (
        1,
        16,
        100,
        500,
        16_384,
    )
    """Impressions that are denoised together."""
    num_inference_steps: Annotated[tuple[PositiveInt, ...], Field(min_length=1), ONCE] = (1, 4, 20)
    """Denoiser calls K, at most 100."""
    dim: PositiveInt = 16
    """Width of the latent."""
    prediction_type: PredictionType = "x0"
    """What the denoiser predicts."""
    denoiser: DenoiserConfig = DenoiserConfig()
    """Its layers."""
    rounds: PositiveInt = 100
    """Timed calls of each form at each size."""
    output: Path | None = None
    """Directory for the table (denoiser.md) and all numbers (denoiser.json)."""

    @model_validator(mode="after")
    def _check(self) -> "DenoiserSettings":
        longest = NoiseScheduleConfig().num_train_timesteps
        if max(self.num_inference_steps) > longest:
            raise ValueError(
                f"num_inference_steps = {max(self.num_inference_steps)}: the chain has {longest}"
            )
        return self


class DenoiserBenchmarkConfig(Config):
    """Configuration of `benchmark denoiser`."""

    benchmark: DenoiserSettings = DenoiserSettings()
    """What is measured."""
