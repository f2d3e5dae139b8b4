"""What it costs to make a dataset, and to append a day: rows/s, memory, growth with the log.

    cdp_torchrec benchmark prepare
    cdp_torchrec benchmark prepare 'benchmark.behaviours=[50_000_000]' benchmark.memory_gib=3

Draws a log of each size, makes a dataset of its first 60 days and appends the 61st, each in a
process of its own whose CPU time and peak memory are shown, beside what only reading and writing
the same bytes takes.
"""

from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.benchmark.preparation.config import PreparationBenchmarkConfig
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.whole_file import why_unwritable

CONFIG = PreparationBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Measure every size.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = load_config(PreparationBenchmarkConfig, arguments).benchmark
    check_output(settings.output)
    if settings.scratch is not None and (reason := why_unwritable(settings.scratch)):
        raise ConfigError.of([f"benchmark.scratch = '{settings.scratch}': {reason}"])
    if settings.scratch is not None:
        settings.scratch.mkdir(parents=True, exist_ok=True)

    from cdp_torchrec.benchmark.preparation.case import measure_size
    from cdp_torchrec.benchmark.preparation.table import as_json, as_markdown
    from cdp_torchrec.progress import progress

    sizes = sorted(settings.behaviours)
    found = [measure_size(size, settings) for size in progress(sizes, "benchmark", unit="logs")]
    publish(
        settings.output,
        "preparation",
        text=as_markdown(found, settings),
        numbers=as_json(found, settings),
    )
