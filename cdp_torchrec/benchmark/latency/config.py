"""Settings of the latency benchmark."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from cdp_torchrec.config import Config, not_with
from cdp_torchrec.config.once import ONCE
from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.experiment_config import ExperimentConfig

Form = Literal["eager", "compiled", "exported"]


class LatencySettings(Config):
    """What is measured."""

    candidates: Annotated[tuple[PositiveInt, ...], Field(min_length=1), ONCE] = (1, 16, 100, 500)
    """Candidates of the request. The frontier is at the number closest to 100."""
    num_inference_steps: Annotated[tuple[PositiveInt, ...], ONCE] = ()
    """Denoiser calls K of CDP. Empty: 1, 2, 4, 8, 20 and 100, as far as the run's chain
    reaches."""
    samplers: Annotated[tuple[SamplerType, ...], ONCE] = ()
    """Samplers of the frontier. Their latency is that of the first one: a call of the denoiser is
    the same in each. Empty: all that the run can use."""
    forms: Annotated[tuple[Form, ...], Field(min_length=1), ONCE] = ("eager", "exported")
    """"eager": PyTorch as it is. "compiled": torch.compile, on a GPU with CUDA graphs.
    "exported": the program of an artifact (AOTInductor). Compiling takes half a minute for each
    model, and longer for many steps."""
    num_requests: PositiveInt = 20
    """Requests of the test split that take turns, their candidate lists cut or repeated."""
    num_rounds: PositiveInt = 200
    """Timed calls of each model at each number of candidates."""
    student: Annotated[Path | None, not_with(quality=False)] = None
    """Run of `cdp_torchrec distill`; without it RUN-student, if it is there."""
    clock: Literal["wall", "thread"] = "wall"
    """"wall": what a client waits. "thread": processor time of the calling thread, for one CPU
    thread on a machine that others use, too."""
    quality: bool = True
    """Also score the test split at each setting."""
    output: Path | None = None
    """Directory for the tables (latency.md), the figure (frontier.png) and all numbers
    (latency.json); RUN/latency if not given."""


class LatencyBenchmarkConfig(ExperimentConfig):
    """A run, and what is measured of it."""

    benchmark: LatencySettings = LatencySettings()
    """What is measured."""
