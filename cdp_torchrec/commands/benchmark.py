"""Measure what training, scoring, serving and sharding plans cost on the machine at hand.

    cdp_torchrec benchmark NAME [LAYER.toml ...] [key=value ...]
    torchx run dist.ddp -j 1x2 launch/benchmark.py NAME [LAYER.toml ...] [key=value ...]
    cdp_torchrec benchmark NAME --help

What is measured, and where results are written, are keys of the section `benchmark`.
"""

from cdp_torchrec.benchmark.endpoint import command as endpoint
from cdp_torchrec.benchmark.histories import command as history
from cdp_torchrec.benchmark.latency import command as latency
from cdp_torchrec.benchmark.training import command as train
from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.help import describe
from cdp_torchrec.distributed.process_group import run_main
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.planning.measured import command as plans

BENCHMARKS = {
    "train": train,
    "plans": plans,
    "history": history,
    "latency": latency,
    "endpoint": endpoint,
}
_HELP = {"-h", "--help"}


def main(arguments: list[str]) -> None:
    """Run one of the benchmarks."""
    if not arguments or arguments[0] in _HELP:
        print(help_of_all())
        return
    name, *rest = arguments
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark: found '{name}', expected one of {', '.join(BENCHMARKS)}")
    if _HELP & set(rest):
        print(help_of(name))
    else:
        BENCHMARKS[name].run(rest)


def help_of_all() -> str:
    """What there is to measure."""
    lines = [f"  {name:<10}{_doc(name).partition(chr(10))[0]}" for name in BENCHMARKS]
    return "\n".join([(__doc__ or "").rstrip(), "", *lines])


def help_of(name: str) -> str:
    """How one benchmark is used, and its own settings."""
    settings = describe(BENCHMARKS[name].CONFIG, without=ExperimentConfig.model_fields)
    return f"{_doc(name)}\n{settings}"


def _doc(name: str) -> str:
    return BENCHMARKS[name].__doc__ or ""


if __name__ == "__main__":
    run_main(main)
