"""The server's process: it listens, loads, serves, and stops when it is told to."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.serving.server.app import make_app
from cdp_torchrec.serving.server.batching import Batcher
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.connections import ACCEPTED_AT_ONCE, Connections
from cdp_torchrec.serving.server.inference import SWITCH_INTERVAL_S, Inferences
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.served_model import ServedModel

logger = logging.getLogger(__name__)

# Whom it turns away tries again only after a second.
_BACKLOG = 1024


def serve(artifact: Path, config: ServerConfig) -> None:
    """Serve an artifact until SIGTERM or SIGINT; SIGHUP loads it again.

    On the first of them no connection is accepted any more, and what was accepted is answered.

    Args:
        artifact: directory of an artifact, or a link to one.
        config: settings.

    Raises:
        ConfigError: host and port cannot be listened on.
        ArtifactError: the artifact cannot be served.
        SignatureError: a trusted key cannot be read.
    """
    # A request is small, and the workers are the parallelism.
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _listen(config) as listener:
        logger.info("listening on %s:%d", *listener.getsockname()[:2])
        metrics = ServerMetrics()
        model = ServedModel(artifact, config, metrics)
        batcher = Batcher(config, metrics)
        inferences = Inferences(batcher, metrics, config)
        server = make_server(model, inferences, metrics, config)
        # uvicorn handles signals while it serves, and raises them again when it is done: then, and
        # before it starts, they mean no more than that.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        asyncio.run(_serve(server, listener, model))
        inferences.close()
        batcher.close()
        logger.info("stopped")


def make_server(
    model: ServedModel, inferences: Inferences, metrics: ServerMetrics, config: ServerConfig
) -> uvicorn.Server:
    """The HTTP server around an application."""
    settings = uvicorn.Config(
        make_app(model, inferences, metrics, config),
        # A type in uvicorn's eyes, which it only calls.
        http=cast(Any, Connections(config, metrics).make),
        # By default X-Forwarded-For is believed, from whom FORWARDED_ALLOW_IPS says: then clients
        # are who they say they are, to the rights of reloads and to every limit by address.
        proxy_headers=False,
        # A connection that another protocol takes over would be out of reach of the limits.
        ws="none",
        timeout_keep_alive=config.idle_timeout_s,
        backlog=ACCEPTED_AT_ONCE,
        access_log=False,
        log_config=None,
        # Malformed requests are the clients' affair, and would fill the log.
        log_level="error",
        lifespan="off",
        server_header=False,
        # Body and scores; then whatever hangs is cut off.
        timeout_graceful_shutdown=round(2 * config.timeout_s) + 1,
    )
    return uvicorn.Server(settings)


async def _serve(server: uvicorn.Server, listener: socket.socket, model: ServedModel) -> None:
    """Answer health checks at once, inferences as soon as the artifact is loaded."""
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(model.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await model.load()
        if not server.should_exit:
            # asyncio has set it to what it accepts at once.
            listener.listen(_BACKLOG)
        # What is there now stays: the collector needs not look at it, which takes a good part of a
        # second, whenever a request has many parts.
        gc.collect()
        gc.freeze()
    except BaseException:
        server.should_exit = True
        await serving
        raise
    await serving
    # Bindings such as Triton's report whatever is left at the end of the process as a leak.
    gc.unfreeze()


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Python would keep clients with addresses of IPv4 out.
    every = config.host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (config.host, config.port), family=family, backlog=_BACKLOG, dualstack_ipv6=every
        )
    except OSError as error:
        raise ConfigError(
            f"host = {config.host!r}, port = {config.port}: cannot listen there: {error}"
        ) from error
    # Connections inherit it. asyncio sets it only for sockets of an explicit protocol; without, the
    # body of an answer waits 40 ms for the client to acknowledge the headers.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
