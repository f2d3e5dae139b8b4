"""From the body of an inference to its answer, with nothing on the event loop but waiting."""

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from fastapi import HTTPException

from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.gaps import refuse_gaps
from cdp_torchrec.serving.request import RequestError
from cdp_torchrec.serving.server.batching import Batcher
from cdp_torchrec.serving.server.body import (
    BodyTooLargeError,
    Inference,
    decompress,
    read_inference,
)
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.errors import QueueFullError, StoppingError
from cdp_torchrec.serving.server.fair_queue import Client
from cdp_torchrec.serving.server.lane import Lane
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.protocol import Answer, infer_answer, to_request
from cdp_torchrec.serving.server.served_model import LoadedModel

R = TypeVar("R")

logger = logging.getLogger(__name__)

RETRY = {"Retry-After": "1"}
SWITCH_INTERVAL_S = 2e-3
"""A thread runs so long before another gets its turn: the event loop does little, but often."""
# While a large body is read: below, turns cost more than they give.
_SWITCH_INTERVAL_LARGE_S = 2e-4
# Bodies beyond it do not stand in the way of the others.
_LARGE_BODY = 64 * 1024
# Answers beyond it are written by a thread.
_LARGE_ANSWER = 2048


@dataclass(frozen=True)
class Posted:
    """An inference as it came."""

    body: bytes
    compression: str | None
    """How the body is compressed, gzip or deflate; None: not at all."""
    json_length: str | None
    """The header that goes before binary tensors."""
    client: Client


class Inferences:
    """Reads, scores and answers."""

    def __init__(self, batcher: Batcher, metrics: ServerMetrics, config: ServerConfig) -> None:
        """Start the threads that read bodies.

        Args:
            batcher: what scores.
            metrics: where gaps are counted.
            config: limits and timeouts.
        """
        self._batcher = batcher
        self._metrics = metrics
        self._config = config
        self._small = Lane("reader", queue_length=config.queue_length)
        self._large = Lane("reader-large", queue_length=config.queue_length)

    def close(self) -> None:
        """Read what is queued, and end the threads."""
        self._small.close()
        self._large.close()

    async def answer(self, posted: Posted, loaded: LoadedModel, *, name: str) -> Answer:
        """The answer of a model.

        Raises:
            RequestError: the inference is wrong.
            HTTPException: it is not answered, with the status that says why.
        """
        timeout_s = self._config.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                asked, encoded = await self._read(posted, loaded)
                waiting = self._batcher.submit(loaded.predictor, encoded, client=posted.client)
                probability = await asyncio.wrap_future(waiting)
                return await _answer(name, loaded, asked, probability)
        except RequestError:
            raise
        except BodyTooLargeError as error:
            raise HTTPException(413, str(error)) from error
        except QueueFullError as error:
            raise HTTPException(429, str(error), headers=RETRY) from error
        except StoppingError as error:
            raise HTTPException(503, str(error), headers=RETRY) from error
        except TimeoutError as error:
            raise HTTPException(504, f"not scored within {timeout_s:g} s") from error
        except FloatingPointError as error:
            logger.error("a request that was found valid could not be scored: %s", error)
            raise HTTPException(500, f"not scored: {error}") from error
        except Exception as error:
            # Not left to the server, which would close the client's connection.
            logger.exception("a request that was found valid could not be scored")
            raise HTTPException(500, "internal error") from error

    async def _read(self, posted: Posted, loaded: LoadedModel) -> tuple[Inference, EncodedRequest]:
        work = partial(self._prepare, posted, loaded)
        lane = self._small
        if len(posted.body) > _LARGE_BODY or posted.compression:
            lane, work = self._large, partial(_in_short_turns, work)
        waiting = lane.submit(work, client=posted.client, cost=len(posted.body))
        return await asyncio.wrap_future(waiting)

    def _prepare(self, posted: Posted, loaded: LoadedModel) -> tuple[Inference, EncodedRequest]:
        """Whatever is wrong with a request is found here, and not in the batch it will be in."""
        config, body = self._config, posted.body
        if posted.compression is not None:
            body = decompress(body, posted.compression, at_most=config.max_body_bytes)
        asked = read_inference(
            body,
            json_length=_json_length(posted.json_length),
            most_values=config.max_body_values,
        )
        request = to_request(asked, loaded.inputs)
        predictor, metadata = loaded.predictor, loaded.metadata
        encoded = predictor.encode(request)
        gaps = predictor.gaps(encoded)
        if config.strict:
            required = metadata.required_candidate_features
            refuse_gaps(request, gaps, tuple(metadata.features.values()), required)
        for feature, count in gaps.missing.items():
            self._metrics.missing_values.labels(feature).inc(count)
        for feature, count in gaps.unknown.items():
            self._metrics.unknown_ids.labels(feature).inc(count)
        if metadata.reads_history and not predictor.has_behaviours(encoded):
            self._metrics.empty_histories.inc()
        return asked, encoded


def _in_short_turns(work: Callable[[], R]) -> R:
    """The work, with the others' turns in between; one thread does such work."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_LARGE_S)
    try:
        return work()
    finally:
        sys.setswitchinterval(interval_s)


def _json_length(header: str | None) -> int | None:
    if header is None:
        return None
    if not (header.isascii() and header.isdigit() and len(header) < 10):
        raise RequestError("Inference-Header-Content-Length", f"expected bytes, found {header!r}")
    return int(header)


async def _answer(
    name: str, loaded: LoadedModel, asked: Inference, probability: np.ndarray
) -> Answer:
    write = partial(infer_answer, name, loaded.metadata.version, asked, probability)
    return write() if len(probability) <= _LARGE_ANSWER else await asyncio.to_thread(write)
