"""Train on a log day by day, each day measured on before it is trained on.

    cdp_torchrec train_days LAYER.toml ... data.dir=DIR run.dir=runs/daily
    torchx run dist.ddp -j 1x4 launch/train_days.py LAYER.toml ... run.dir=runs/daily

The periods of the dataset are "train", "test" and the days that were appended to it
(cdp_torchrec prepare_data append). Each has a run of its own in run.dir, which begins from that of
the period before and is measured on the next one. The same line goes on where it was stopped, and
takes in the days that were appended since; with days.follow=true it waits for them. A day that
shall be done again: remove its directory.
The table and the curve of all days are days.json and days.png in run.dir.
"""

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.sections import asks_help, help_text
from cdp_torchrec.daily.config import DailyExperimentConfig
from cdp_torchrec.data.own_starter import check_starters
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero, run_main
from cdp_torchrec.experiment_config import check_early
from cdp_torchrec.run.saved import check_run_directory, holds_run


def main(arguments: list[str]) -> None:
    """Train all days."""
    if asks_help(arguments):
        print(help_text(__doc__, DailyExperimentConfig, arguments))
        return
    config = load_config(DailyExperimentConfig, arguments)
    check_starters(arguments, config.data.dir)
    directory = config.run.dir
    if directory is not None and holds_run(directory):
        raise ConfigError(
            f"run.dir = '{directory}' holds a run; choose a directory for the runs of all days"
        )
    check_early(config)
    for run in config.runs():
        assert run.run.dir is not None
        check_run_directory(run.run.dir, resume=True)

    from cdp_torchrec.daily.loop import describe_days, train_days

    days = train_days(config, init_process_group(config.ranks))
    if is_rank_zero():
        print(describe_days(days))


if __name__ == "__main__":
    run_main(main)
