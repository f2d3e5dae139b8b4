"""Measure what training, scoring, serving and sharding cost on this machine.

    cdp_torchrec benchmark NAME [LAYER.toml ...] [key=value ...]
    torchx run dist.ddp -j 1x2 launch/benchmark.py NAME [LAYER.toml ...] [key=value ...]
    cdp_torchrec benchmark NAME --help

What is measured, and where results are written, are keys of the section `benchmark`.
"""

from cdp_torchrec.benchmark.data import command as data
from cdp_torchrec.benchmark.denoiser import command as denoiser
from cdp_torchrec.benchmark.endpoint import command as endpoint
from cdp_torchrec.benchmark.histories import command as history
from cdp_torchrec.benchmark.latency import command as latency
from cdp_torchrec.benchmark.preparation import command as prepare
from cdp_torchrec.benchmark.training import command as train
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.distributed.process_group import run_main
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.planning.measured import command as plans
from cdp_torchrec.stopped_by_signals import stopped_by_signals

BENCHMARKS = {
    "train": train,
    "plans": plans,
    "history": history,
    "data": data,
    "prepare": prepare,
    "denoiser": denoiser,
    "latency": latency,
    "endpoint": endpoint,
}
RUN_SECTIONS = ExperimentConfig.model_fields
"""Sections of a run, which `train --help` explains."""


def main(arguments: list[str]) -> None:
    """Run one of the benchmarks."""
    name, *rest = arguments or ["--help"]
    if name in BENCHMARKS and asks_help(rest):
        print(help_of(name, rest))
    elif name in BENCHMARKS:
        with stopped_by_signals(f"benchmark {name} has no results yet"):
            BENCHMARKS[name].run(rest)
    elif asks_help(arguments or ["--help"]):
        print(help_of_all())
    else:
        raise ConfigError(f"benchmark: found '{name}', expected one of {', '.join(BENCHMARKS)}")


def help_of_all() -> str:
    """What there is to measure."""
    lines = [f"  {name:<10}{_doc(name).splitlines()[0]}" for name in BENCHMARKS]
    return "\n".join([(__doc__ or "").rstrip(), "", *lines])


def help_of(name: str, arguments: list[str]) -> str:
    """How one benchmark is used, and its own settings; or the section that the arguments name."""
    config = BENCHMARKS[name].CONFIG
    own = [section for section in config.model_fields if section not in RUN_SECTIONS]
    return help_text(_doc(name), config, arguments, sections=own)


def _doc(name: str) -> str:
    return BENCHMARKS[name].__doc__ or ""


if __name__ == "__main__":
    run_main(main)
