"""How fast histories reach a batch: the point-in-time store against copies in the requests.

    cdp_torchrec benchmark data
    cdp_torchrec benchmark data 'benchmark.lengths=[2000]' benchmark.num_categories=1

Makes a log for each length of history, writes it in both layouts, and reads it as a training does.
Prints impressions per second of a core, bytes per impression, the same with loader processes, and
the physical limit: reading the same bytes in a row and copying the tensors once.
"""

from cdp_torchrec.benchmark.data.config import DataBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.benchmark.rows import SYNTHETIC, row_files
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.whole_file import why_unwritable

CONFIG = DataBenchmarkConfig

_NOTHING_TO_READ = ("none",)


def run(arguments: list[str]) -> None:
    """Measure every row at every length.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load_config(DataBenchmarkConfig, arguments).benchmark
    files = row_files(settings.rows, leave_out=_NOTHING_TO_READ)
    check_output(settings.output)
    if settings.scratch is not None and (reason := why_unwritable(settings.scratch)):
        raise ConfigError.of([f"benchmark.scratch = '{settings.scratch}': {reason}"])
    if settings.scratch is not None:
        settings.scratch.mkdir(parents=True, exist_ok=True)
    configs = {
        name: load_config(ExperimentConfig, [str(SYNTHETIC), str(path)])
        for name, path in files.items()
    }

    from cdp_torchrec.benchmark.data.case import measure_length
    from cdp_torchrec.benchmark.data.table import as_json, as_markdown
    from cdp_torchrec.progress import progress

    lengths = sorted(settings.lengths)
    found = [
        measure_length(length, configs, settings)
        for length in progress(lengths, "benchmark", unit="lengths")
    ]
    publish(
        settings.output, "data", text=as_markdown(found, settings), numbers=as_json(found, settings)
    )
