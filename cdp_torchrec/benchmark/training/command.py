"""Speed of training: interest modules side by side, and where a step's time goes.

    torchx run dist.ddp -j 1x1 launch/benchmark.py train
    torchx run dist.ddp -j 1x2 launch/benchmark.py train configs/data/trivago.toml
    cdp_torchrec benchmark train 'benchmark.rows=["din", "twin"]' benchmark.plain=false

Trains each row on batches in memory, in rounds that alternate, through the pipeline of `train`; on
one rank the first row also with plain nn.EmbeddingBag tables, from the same weights on the same
batches. Prints impressions per second (median, minimum and maximum over rounds), ratios within
rounds, the time to read a batch, and shares of a step's time by kind of work.

Layers and key=value change the run, as for `train`; without a layer it is configs/data/synthetic.
"""

from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.benchmark.rows import SYNTHETIC, row_files
from cdp_torchrec.benchmark.training.config import TrainingBenchmarkConfig
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.process_group import init_process_group, is_rank_zero
from cdp_torchrec.experiment_config import check_early

CONFIG = TrainingBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Time the training of every row.

    Raises:
        ConfigError: a setting is wrong.
    """
    rows = load_rows(arguments)
    first = next(iter(rows.values()))  # they differ in the module alone
    output = first.benchmark.output
    check_output(output)
    for row in rows.values():
        check_early(row)

    from cdp_torchrec.benchmark.training.report import as_json, as_markdown
    from cdp_torchrec.benchmark.training.rounds import measure_training

    speed = measure_training(rows, init_process_group(first.ranks))
    if is_rank_zero():
        publish(output, "train", text=as_markdown(speed), numbers=as_json(speed))


def load_rows(arguments: list[str]) -> dict[str, TrainingBenchmarkConfig]:
    """Configuration of each row by its name.

    Raises:
        ConfigError: a setting is wrong.
    """
    if not any(argument.endswith(".toml") for argument in arguments):
        arguments = [str(SYNTHETIC), *arguments]
    # Any row completes the configuration that names the rows, but for the settings of their own.
    some = next(iter(row_files(None).values()))
    general = [argument for argument in arguments if not argument.startswith("model.interest.")]
    names = load_config(TrainingBenchmarkConfig, [*general, str(some)]).benchmark.rows
    return {
        name: load_config(TrainingBenchmarkConfig, [*arguments, str(path)])
        for name, path in row_files(names).items()
    }
