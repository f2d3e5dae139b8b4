"""Cost of every interest module alone, as histories grow: time and memory of a batch.

    cdp_torchrec benchmark history
    cdp_torchrec benchmark history 'benchmark.rows=["pooled", "din"]' 'benchmark.lengths=[50, 1000]'

Trains and scores each module on one CPU thread, at each length in a process of its own, which is
ended when it passes a limit. Prints time, its ratio to `pooled` in the same round, and peak memory.
"""

from cdp_torchrec.benchmark.histories.config import HistoryBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.benchmark.rows import SYNTHETIC, row_files
from cdp_torchrec.config import load_config
from cdp_torchrec.experiment_config import ExperimentConfig

CONFIG = HistoryBenchmarkConfig

_NOTHING_TO_MEASURE = ("none", "counts")
_POOLED = "pooled"


def run(arguments: list[str]) -> None:
    """Measure every row at every length.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load_config(HistoryBenchmarkConfig, arguments).benchmark
    files = row_files(settings.rows, leave_out=_NOTHING_TO_MEASURE)
    check_output(settings.output)

    from cdp_torchrec.benchmark.histories.table import as_json, as_markdown, run_history_benchmark
    from cdp_torchrec.interest import PooledConfig

    interests = {
        name: load_config(ExperimentConfig, [str(SYNTHETIC), str(path)]).model.interest
        for name, path in (row_files([_POOLED]) | files).items()
    }
    pooled = interests[_POOLED]
    assert isinstance(pooled, PooledConfig)
    table = run_history_benchmark({name: interests[name] for name in files}, pooled, settings)
    publish(settings.output, "history", text=as_markdown(table), numbers=as_json(table))
