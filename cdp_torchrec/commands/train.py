"""Train a ranking model and measure it on the test split.

    torchx run dist.ddp -j 1x4 launch/train.py
    torchx run dist.ddp -j 1x4 launch/train.py configs/data/trivago.toml configs/interest/cdp.toml
    cdp_torchrec train trainer.max_steps=20

Arguments ending in .toml are configuration layers, merged from left to right; key=value overrides
them. Without a layer, configs/quickstart.toml is trained.
"""

from cdp_torchrec.config import load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.config.shipped import QUICKSTART
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.experiment_config import ExperimentConfig, check_early
from cdp_torchrec.run.saved import check_run_directory


def main(arguments: list[str]) -> None:
    """Run one training."""
    if asks_help(arguments):
        print(help_text(__doc__, ExperimentConfig, arguments))
        return
    config = load_config(ExperimentConfig, arguments, default_layers=[QUICKSTART])
    check_early(config)
    if config.run.dir is not None:
        check_run_directory(config.run.dir, resume=config.run.resume)

    from cdp_torchrec.experiment import train_experiment
    from cdp_torchrec.outcome import describe_outcome

    trained = train_experiment(config, init_process_group(config.ranks))
    outcome = describe_outcome(trained)
    if is_rank_zero():
        print(trained.report.table(), outcome, sep="\n\n")


if __name__ == "__main__":
    run_main(main)
