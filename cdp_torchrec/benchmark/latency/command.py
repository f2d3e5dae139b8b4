"""Latency that CDP adds to a request, and what each denoising step buys in quality.

    cdp_torchrec benchmark latency RUN
    cdp_torchrec benchmark latency RUN 'benchmark.num_inference_steps=[1, 4, 20]' benchmark.output=D

RUN is a trained run of CDP, or a checkpoint of it. Times the dense part for one request: the same
tower without interest, with the pooled history, and CDP at each number of steps, eager and
exported; then scores the test split at each sampler and number of steps, and with the student of
`distill`. Prints tables, and writes them with a figure into RUN/latency. On a CPU set
OMP_NUM_THREADS=1 for one thread. key=value also changes the run's own configuration.
"""

from pathlib import Path

from cdp_torchrec.benchmark.latency.config import LatencyBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, write_output
from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.process_group import init_process_group
from cdp_torchrec.whole_file import whole_file

CONFIG = LatencyBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Measure a run.

    Raises:
        ConfigError: a setting is wrong, or no run of CDP is named.
        CheckpointError: there is no checkpoint, or it does not fit the dataset.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError("benchmark latency: name a run first: benchmark latency RUN [key=value]")

    from cdp_torchrec.benchmark.latency.frontier import measure_run, open_cdp_run
    from cdp_torchrec.benchmark.latency.report import as_json, as_markdown, draw_frontier

    cdp_run = open_cdp_run(Path(arguments[0]), arguments[1:])
    output = cdp_run.config.benchmark.output or cdp_run.directory / "latency"
    check_output(output)
    report = measure_run(cdp_run, init_process_group())
    text = as_markdown(report)
    write_output(output, "latency", text=text, numbers=as_json(report))
    if report.qualities:
        with whole_file(output / "frontier.png") as partial:
            draw_frontier(report, partial)
    print(text)
