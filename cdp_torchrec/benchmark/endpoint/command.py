r"""A server under load, with a reload half-way and clients that send malformed requests.

    cdp_torchrec benchmark endpoint ARTIFACT
    cdp_torchrec benchmark endpoint RUN/export benchmark.reload=RUN/export-int8 \
        benchmark.num_clients=16 server.num_workers=2

ARTIFACT is a directory that `export` has written. Serves it on loopback, compares every answer with
the predictor's, prints throughput and latencies, and fails if an answer is wrong or lost.
"""

from pathlib import Path

from cdp_torchrec.benchmark.endpoint.config import EndpointBenchmarkConfig
from cdp_torchrec.benchmark.output import check_output, publish
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.config.layers import is_layer, is_override
from cdp_torchrec.serving.artifact import check_is_artifact

CONFIG = EndpointBenchmarkConfig


def run(arguments: list[str]) -> None:
    """Measure a server of an artifact.

    Raises:
        ConfigError: a setting is wrong, or no artifact is named.
        EndpointError: an answer was wrong or lost.
    """
    if not arguments or is_override(arguments[0]) or is_layer(arguments[0]):
        raise ConfigError(
            "benchmark endpoint: name an artifact first: benchmark endpoint ARTIFACT [key=value]"
        )
    artifact, config = Path(arguments[0]), load_config(EndpointBenchmarkConfig, arguments[1:])
    check_is_artifact(artifact)
    check_output(config.benchmark.output)

    from cdp_torchrec.benchmark.endpoint.load import measure_endpoint
    from cdp_torchrec.benchmark.endpoint.report import as_json, as_markdown

    load = measure_endpoint(artifact, config)
    publish(config.benchmark.output, "endpoint", text=as_markdown(load), numbers=as_json(load))
    load.check()
