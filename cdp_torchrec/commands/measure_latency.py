"""Measure what CDP adds to a request's latency, and what each denoising step buys in quality.

    cdp_torchrec measure_latency RUN
    cdp_torchrec measure_latency RUN 'latency.num_inference_steps=[1,4,20]' --output DIR

RUN is a trained run of CDP. Times the dense part for one request: the same tower without interest,
with the pooled history, and CDP at each number of steps, eager and exported; then scores the test
split at each sampler and number of steps, and with the student of `cdp_torchrec distill`. Writes
latency.md, latency.json and frontier.png into DIR (RUN/latency). On a CPU set OMP_NUM_THREADS=1 for
one thread. key=value changes the run's configuration; the keys of the measurement:
"""

import argparse
import json
from pathlib import Path

from cdp_torchrec.benchmark.latency.config import LatencyConfig
from cdp_torchrec.config.help import describe
from cdp_torchrec.distributed.process_group import init_process_group, run_main


def main(arguments: list[str]) -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(
        prog="cdp_torchrec measure_latency",
        description=f"{__doc__}\n{describe(LatencyConfig)}",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run directory or checkpoint of CDP")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--output", type=Path, help="directory of the results")
    options = parser.parse_intermixed_args(arguments)

    from cdp_torchrec.benchmark.latency.frontier import measure_run
    from cdp_torchrec.benchmark.latency.report import as_json, as_markdown, draw_frontier

    report = measure_run(options.run, options.overrides, init_process_group())
    output = options.output or options.run / "latency"
    output.mkdir(parents=True, exist_ok=True)
    text = as_markdown(report)
    (output / "latency.md").write_text(text)
    (output / "latency.json").write_text(json.dumps(as_json(report), indent=2) + "\n")
    if report.qualities:
        draw_frontier(report, output / "frontier.png")
    print(text)


if __name__ == "__main__":
    run_main(main)
