"""Measure what training and scoring cost on the machine at hand.

    torchx run dist.ddp -j 1x1 launch/benchmark.py train
    torchx run dist.ddp -j 1x2 launch/benchmark.py train configs/data/trivago.toml
    torchx run dist.ddp -j 1x2 launch/benchmark.py plans
    cdp_torchrec benchmark history
    cdp_torchrec benchmark history 'rows=["pooled", "din"]' 'lengths=[50, 1000]'
    cdp_torchrec benchmark endpoint RUN/export

`train`: trains `pooled`, `cdp` and `cdp_paper` in alternating rounds on batches in memory; on one
rank also `pooled` with plain nn.EmbeddingBag tables. Prints impressions per second (median, minimum
and maximum over rounds), ratios, the time to read a batch, and where a step's time goes. Layers and
key=value change the configuration; without a layer it is configs/data/synthetic.toml.

`plans`: runs sharding plans for a short time, and sets time and memory of every table beside the
planner's estimates; fits the bandwidths of the machine, and prints the error before and after.
Layers and key=value change the configuration, benchmark.* what is measured (see `plans --help`);
without a layer it is configs/benchmark/plans.toml.

    torchx run dist.ddp -j 1x2 launch/benchmark.py plans configs/data/trivago.toml \
        configs/interest/pooled.toml 'benchmark.plans=["row_wise", "runs/a/plan.json"]' \
        benchmark.output=plans benchmark.output_hardware=here.toml
    torchx run dist.ddp -j 1x2 launch/train.py ... sharding.hardware=here.toml

`endpoint`: serves an artifact on loopback under load, with a reload half-way and clients that send
malformed requests; compares every answer with the predictor's. Prints throughput and latencies, and
fails if an answer is wrong or lost. key=value changes the load (see `endpoint --help`).

    cdp_torchrec benchmark endpoint RUN/export reload=RUN/export-int8 num_clients=16

`history`: training and scoring of every interest module, alone on one CPU thread, against the
length of the history. Prints time, its ratio to `pooled` in the same round, and peak memory; each
row at each length is a process of its own, ended when it passes a limit. --output FILE also writes
JSON. Layers and key=value change these settings:
"""

import json
import statistics
from pathlib import Path

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.help import describe
from cdp_torchrec.config.shipped import SHIPPED
from cdp_torchrec.distributed.process_group import (
    init_process_group,
    is_rank_zero,
    run_main,
    world_size,
)

SYNTHETIC = str(SHIPPED / "data" / "synthetic.toml")
MODULES = ("pooled", "cdp", "cdp_paper")
PLANS = SHIPPED / "benchmark" / "plans.toml"


def main(arguments: list[str]) -> None:
    """Run one of the benchmarks."""
    if {"-h", "--help"} & set(arguments):
        show_help(arguments)
        return
    match arguments:
        case ["train", *settings]:
            benchmark_training(settings)
        case ["plans", *settings]:
            benchmark_plans(settings)
        case ["history", *settings]:
            benchmark_histories(settings)
        case ["endpoint", artifact, *settings]:
            benchmark_endpoint(Path(artifact), settings)
        case _:
            raise ConfigError(
                f"found {arguments[:1]}, expected: benchmark train [layers], "
                "plans [layers], history [layers], or "
                "endpoint ARTIFACT [key=value]"
            )


def show_help(arguments: list[str]) -> None:
    """What the benchmarks do, and the settings of one."""
    from cdp_torchrec.benchmark.histories.config import HistoryBenchmarkConfig

    if "plans" in arguments:
        from cdp_torchrec.planning.measured.config import PlansConfig

        print(f"{__doc__}\n{describe(PlansConfig)}")
    elif "endpoint" in arguments:
        from cdp_torchrec.benchmark.endpoint.config import EndpointBenchmarkConfig

        print(f"{__doc__}\n{describe(EndpointBenchmarkConfig)}")
    else:
        print(f"{__doc__}\n{describe(HistoryBenchmarkConfig)}")


def benchmark_training(settings: list[str]) -> None:
    """Training speed of the sharded model."""
    from cdp_torchrec.benchmark.training import rounds as training
    from cdp_torchrec.experiment import build_experiment, prepare_synthetic
    from cdp_torchrec.experiment_config import ExperimentConfig

    if not any(setting.endswith(".toml") for setting in settings):
        settings = [SYNTHETIC, *settings]
    device = init_process_group()
    experiments = {}
    for name in MODULES:
        layers = [*settings, str(SHIPPED / "interest" / f"{name}.toml")]
        config = load_config(ExperimentConfig, layers)
        prepare_synthetic(config.data)
        experiments[name] = build_experiment(config, device)
    contestants = [training.sharded_contestant(n, e) for n, e in experiments.items()]
    if world_size() == 1:
        plain = training.plain_contestant("pooled, plain PyTorch", experiments["pooled"])
        contestants.append(plain)
    speeds = training.time_training(contestants)
    reading = training.reading_ms(experiments["pooled"])
    shares = {c.name: training.profile_training(c) for c in contestants}
    if not is_rank_zero():
        return
    size = contestants[0].global_batch_size
    print(f"{world_size()} ranks ({device.type}), global batch {size}, reading {reading:.1f} ms")
    base = speeds["pooled"]
    for name, rounds in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(rounds, base, strict=True))
        print(
            f"{name:<22} {statistics.median(rounds):10,.0f} impressions/s "
            f"({min(rounds):,.0f} .. {max(rounds):,.0f}), {ratio:.2f} x pooled"
        )
        print("    " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares[name].items()))


def benchmark_plans(settings: list[str]) -> None:
    """Sharding plans, measured beside the planner's estimates."""
    from cdp_torchrec.experiment import prepare_synthetic
    from cdp_torchrec.planning.measured.comparison import compare
    from cdp_torchrec.planning.measured.config import PlansConfig
    from cdp_torchrec.planning.measured.job import make_plans, open_job
    from cdp_torchrec.planning.measured.measurement import measure_plans
    from cdp_torchrec.planning.measured.output import write_outputs
    from cdp_torchrec.planning.measured.text import as_markdown

    config = load_config(PlansConfig, settings, default_layers=[PLANS])
    device = init_process_group()
    prepare_synthetic(config.data)
    job = open_job(config, device)
    measured = measure_plans(job, make_plans(job))
    if is_rank_zero():
        comparison = compare(job, measured)
        write_outputs(comparison)
        print(as_markdown(comparison))


def benchmark_endpoint(artifact: Path, settings: list[str]) -> None:
    """A server under load."""
    from cdp_torchrec.benchmark.endpoint.config import EndpointBenchmarkConfig
    from cdp_torchrec.benchmark.endpoint.load import measure_endpoint

    load = measure_endpoint(artifact, load_config(EndpointBenchmarkConfig, settings))
    print(load.as_markdown())
    load.check()


def benchmark_histories(settings: list[str]) -> None:
    """Cost of every interest module against the length of the history."""
    from cdp_torchrec.benchmark.histories.config import HistoryBenchmarkConfig
    from cdp_torchrec.benchmark.histories.table import as_json, as_markdown, run_history_benchmark
    from cdp_torchrec.experiment_config import ExperimentConfig
    from cdp_torchrec.interest import NoneConfig, PooledConfig

    settings, output = split_output(settings)
    config = load_config(HistoryBenchmarkConfig, settings)
    files = {path.stem: path for path in sorted((SHIPPED / "interest").glob("*.toml"))}
    interests = {
        name: load_config(ExperimentConfig, [SYNTHETIC, str(path)]).model.interest
        for name, path in files.items()
    }
    rows = {n: c for n, c in interests.items() if not isinstance(c, NoneConfig)}
    if config.rows is not None:
        unknown = sorted(set(config.rows) - set(rows))
        if unknown:
            raise ConfigError(f"rows: found {unknown}, expected some of {', '.join(rows)}")
        rows = {name: rows[name] for name in config.rows}
    pooled = interests["pooled"]
    assert isinstance(pooled, PooledConfig)
    table = run_history_benchmark(rows, pooled, config)
    if output is not None:
        output.write_text(json.dumps(as_json(table), indent=2) + "\n")
    print(as_markdown(table))


def split_output(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without --output FILE, and FILE."""
    if "--output" not in arguments:
        return arguments, None
    place = arguments.index("--output")
    if place + 1 == len(arguments):
        raise ConfigError("--output: expected a file behind it")
    output = Path(arguments[place + 1])
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: the directory {output.parent} does not exist")
    return arguments[:place] + arguments[place + 2 :], output


if __name__ == "__main__":
    run_main(main)
