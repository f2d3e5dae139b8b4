"""Measure training speed on the machine at hand: interest modules, ranks, plain PyTorch.

    torchx run dist.ddp -j 1x1 launch/benchmark.py train
    torchx run dist.ddp -j 1x2 launch/benchmark.py train configs/data/trivago.toml

Trains `pooled`, `cdp` and `cdp_paper` in alternating rounds on batches in memory; on one rank also
`pooled` with plain nn.EmbeddingBag tables. Prints impressions per second (median, minimum and
maximum over rounds), ratios, the time to read a batch, and where a step's time goes. Layers and
key=value change the configuration; without a layer it is configs/data/synthetic.toml.
"""

import statistics
from pathlib import Path

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.process_group import (
    init_process_group,
    is_rank_zero,
    run_main,
    world_size,
)

CONFIGS = Path(__file__).parent.parent / "configs"
MODULES = ("pooled", "cdp", "cdp_paper")


def main(arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    if arguments[:1] != ["train"]:
        raise ConfigError(f"found {arguments[:1]}, expected: benchmark.py train [layers]")
    from cdp_torchrec import benchmark
    from cdp_torchrec.experiment import ExperimentConfig, build_experiment, prepare_synthetic

    settings = arguments[1:]
    if not any(setting.endswith(".toml") for setting in settings):
        settings = [str(CONFIGS / "data" / "synthetic.toml"), *settings]
    device = init_process_group()
    experiments = {}
    for name in MODULES:
        layers = [*settings, str(CONFIGS / "interest" / f"{name}.toml")]
        config = load_config(ExperimentConfig, layers)
        prepare_synthetic(config.data)
        experiments[name] = build_experiment(config, device)
    contestants = [benchmark.sharded_contestant(n, e) for n, e in experiments.items()]
    if world_size() == 1:
        plain = benchmark.plain_contestant("pooled, plain PyTorch", experiments["pooled"])
        contestants.append(plain)
    speeds = benchmark.time_training(contestants)
    reading = benchmark.reading_ms(experiments["pooled"])
    shares = {c.name: benchmark.profile_training(c) for c in contestants}
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


if __name__ == "__main__":
    run_main(main)
