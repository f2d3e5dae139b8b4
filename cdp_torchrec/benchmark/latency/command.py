"""Latency that CDP adds to a request, and what each denoising step buys in quality.

    cdp_torchrec benchmark latency RUN
    cdp_torchrec benchmark latency RUN 'benchmark.num_inference_steps=[1, 4, 20]' benchmark.output=D

RUN is a trained run of CDP, or a checkpoint of it. Times the dense part for one request: the same
tower without interest, with the pooled history, and CDP at each number of steps, eager and
exported; then scores the test split at each sampler and number of steps, and with the student of
`distill`. Prints tables, and writes them with a figure into RUN/latency. On a CPU set
OMP_NUM_THREADS=1 for one thread. key=value also changes the run's own configuration.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cdp_torchrec.benchmark.latency.config import LatencyBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.layers import is_override
from cdp_torchrec.diffusion.config import SamplerType
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.interest.config.gated import CdpConfig
from cdp_torchrec.stored_run import StoredRun, open_run
from cdp_torchrec.whole_file import whole_file

CONFIG = LatencyBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Measure a run.

    Raises:
        ConfigError: a setting is wrong, or no run of CDP is named.
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
    """
    if not arguments or is_override(arguments[0]):
        raise ConfigError("benchmark latency: name a run first: benchmark latency RUN [key=value]")

    cdp_run = open_cdp_run(Path(arguments[0]), arguments[1:])
    check_early(cdp_run.config)
    output = cdp_run.config.benchmark.output or cdp_run.directory / "latency"
    check_output(output)

    from cdp_torchrec.benchmark.latency.frontier import measure_run
    from cdp_torchrec.benchmark.latency.report import as_json, as_markdown, draw_frontier

    report = measure_run(cdp_run, init_process_group(cdp_run.config.ranks))
    if not is_rank_zero():
        return
    figure = output / "frontier.png"
    if report.qualities:
        with whole_file(figure) as partial:
            draw_frontier(report, partial)
    else:
        figure.unlink(missing_ok=True)  # of an earlier measurement, with other figures
    publish(output, "latency", text=as_markdown(report), numbers=as_json(report))


def open_cdp_run(path: Path, overrides: Sequence[str]) -> StoredRun[LatencyBenchmarkConfig]:
    """Find a run that can be measured.

    Args:
        path: run directory or checkpoint.
        overrides: key=value over the run's configuration, and benchmark.key=value.

    Raises:
        ConfigError: it is no run of CDP with a sampler, or a number of steps is impossible.
        CheckpointError: there is no checkpoint, or another release wrote it.
    """
    run = open_run(path, overrides, LatencyBenchmarkConfig)
    return replace(run, config=_checked(run.config))


def _checked(config: LatencyBenchmarkConfig) -> LatencyBenchmarkConfig:
    """With the steps and samplers that are measured."""
    interest, latency = config.model.interest, config.benchmark
    if not isinstance(interest, CdpConfig) or interest.train_path == "unrolled":
        raise ConfigError(
            f"model.interest.kind = '{interest.kind}': only a run of 'cdp' that is trained with "
            "train_path 'chain' or 'x0_onestep' has steps to measure"
        )
    if config.model.num_embedding_sets > 1:
        raise ConfigError(
            f"model.num_embedding_sets = {config.model.num_embedding_sets}: only a run of one set "
            "can be measured at several numbers of steps"
        )
    for steps in latency.num_inference_steps:
        if steps > interest.max_inference_steps:
            raise ConfigError(
                f"benchmark.num_inference_steps: found {steps}, but sampling starts at level "
                f"{interest.max_inference_steps} of the {interest.noise_level}; allowed is 1 to "
                f"{interest.max_inference_steps}"
            )
    samplers: tuple[SamplerType, ...] = ("ddim", "dpmpp_2m")
    if interest.noise_level == "evidence":
        samplers = ("ddim",)
    if not set(latency.samplers) <= set(samplers):
        raise ConfigError(
            f"benchmark.samplers = {list(latency.samplers)}: a run with "
            "model.interest.noise_level = 'evidence' has one sampler, benchmark.samplers=[\"ddim\"]"
        )
    possible = tuple(k for k in (1, 2, 4, 8, 20, 100) if k <= interest.max_inference_steps)
    chosen = {
        "num_inference_steps": latency.num_inference_steps or possible,
        "samplers": latency.samplers or samplers,
    }
    return config.model_copy(update={"benchmark": latency.model_copy(update=chosen)})
