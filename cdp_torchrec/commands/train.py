"""Train a ranking model and measure it on the test split.

    torchx run dist.ddp -j 1x4 launch/train.py
    torchx run dist.ddp -j 1x4 launch/train.py configs/data/trivago.toml configs/interest/cdp.toml
    cdp_torchrec train trainer.max_steps=20

Arguments ending in .toml are configuration layers, merged from left to right; key=value overrides
them. Without a layer, configs/quickstart.toml is trained.

    cdp_torchrec train run.dir=runs/mine run.resume=true               goes on as the run was begun
    cdp_torchrec train run.fork_from=runs/mine run.dir=runs/other optimizer.dense.lr=1e-4

A run goes on with its own configuration. Layers and key=value may be repeated, and may change what
decides no result, on any number of ranks; --help says of each key whether it may change. With other
settings a fork begins a new run from the weights and the optimizer state of the run.
"""

from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.continuation import load_training
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.experiment_config import ExperimentConfig, check_early
from cdp_torchrec.run.saved import check_run_directory


def main(arguments: list[str]) -> None:
    """Run one training."""
    if asks_help(arguments):
        print(help_text(__doc__, ExperimentConfig, arguments))
        return
    config = load_training(arguments)
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
