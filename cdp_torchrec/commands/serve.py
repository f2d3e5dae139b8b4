"""Serve an exported artifact over HTTP, in the Open Inference Protocol (KServe v2).

    cdp_torchrec serve ARTIFACT [key=value ...]
    cdp_torchrec serve runs/trivago-cdp/export port=8080 history_store=data/trivago

ARTIFACT is a directory of `cdp_torchrec export`, or a link to one. A delta is one, too, where what
it begins from is served or lies in the same folder. To replace it without losing a
request, let the link point to another artifact, then send SIGHUP or POST
/v2/repository/models/NAME/load: the new one is checked while the old one serves. Never change
files of an artifact or of a history store in service: they are mapped, and one that is cut ends the
server ("Bus error"). Append days, or prepare elsewhere and rename. SIGTERM: what was accepted is
answered, then the server ends.

    curl localhost:8080/v2/models/trivago-cdp                       the inputs and their types
    curl localhost:8080/v2/models/trivago-cdp/infer -H 'Content-Type: application/json' -d '{
        "inputs": [
            {"name": "timestamp_ms", "datatype": "INT64", "shape": [1], "data": [1541700000000]},
            {"name": "candidates.item_id", "datatype": "BYTES", "shape": [2], "data": ["7", "9"]},
            {"name": "candidates.category_id", "datatype": "BYTES", "shape": [2],
             "data": ["Rome, Italy", "Rome, Italy"]}]}'

Health: /v2/health/live and /v2/health/ready; Prometheus: /metrics.
"""

import logging
from pathlib import Path

from cdp_torchrec.command_line import CommandParser
from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.process_group import run_main
from cdp_torchrec.serving.artifact import check_is_artifact
from cdp_torchrec.serving.server.config import ServerConfig


def main(arguments: list[str]) -> None:
    """Serve what the first argument names."""
    parser = CommandParser("serve", __doc__, "key=value, or a TOML file of settings")
    parser.add_argument("artifact", type=Path, help="directory of an artifact, or a link to one")
    options = parser.parse(arguments, ServerConfig)
    if options is None:
        return

    config = load_config(ServerConfig, options.settings)
    check_is_artifact(options.artifact)

    from cdp_torchrec.serving.server.run import serve

    # force: a library has set up logging while it was imported.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("cdp_torchrec").setLevel(logging.INFO)
    serve(options.artifact, config)


if __name__ == "__main__":
    run_main(main)
