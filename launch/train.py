"""Train a ranking model and measure it on the test split.

    torchx run dist.ddp -j 1x4 launch/train.py
    torchx run dist.ddp -j 1x4 launch/train.py configs/data/trivago.toml configs/interest/cdp.toml
    python launch/train.py trainer.max_steps=20

Arguments ending in .toml are configuration layers, merged from left to right; key=value overrides
them. Without a layer, configs/quickstart.toml is trained.
"""

from pathlib import Path

from cdp_torchrec.config import load_config
from cdp_torchrec.config.help import describe
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.toml"


def main(arguments: list[str]) -> None:
    """Run one training."""
    from cdp_torchrec.experiment import train_experiment
    from cdp_torchrec.experiment_config import ExperimentConfig
    from cdp_torchrec.outcome import describe_outcome

    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{describe(ExperimentConfig)}")
        return
    config = load_config(ExperimentConfig, arguments, default_layers=[QUICKSTART])
    trained = train_experiment(config, init_process_group())
    outcome = describe_outcome(trained)
    if is_rank_zero():
        print(trained.report.table(), outcome, sep="\n\n")


if __name__ == "__main__":
    run_main(main)
