"""The model in service, and how another artifact takes its place."""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from cdp_torchrec.serving.artifact import ArtifactError
from cdp_torchrec.serving.predictor import Predictor, PredictorMetadata
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.metrics import ServerMetrics
from cdp_torchrec.serving.server.protocol import InputSpec, input_specs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A predictor, and what every request asks of it, found out once."""

    predictor: Predictor
    metadata: PredictorMetadata
    inputs: Mapping[str, InputSpec]

    @classmethod
    def of(cls, predictor: Predictor) -> Self:
        """Args: the predictor."""
        metadata = predictor.metadata
        return cls(predictor, metadata, input_specs(metadata))


class ServedModel:
    """The model that requests go to; it changes as a whole or not at all."""

    def __init__(self, artifact: Path, config: ServerConfig, metrics: ServerMetrics) -> None:
        """Serve nothing yet.

        Args:
            artifact: directory of an artifact, or a link to one, followed at every load.
            config: settings of the server.
            metrics: told of loads.
        """
        self.current: LoadedModel | None = None
        self.name = config.model_name
        self._artifact = artifact
        self._config = config
        self._metrics = metrics
        self._one_load_at_a_time = asyncio.Lock()

    async def load(self) -> None:
        """Open the artifact, and serve it once it proved to score as it should.

        Requests go to the previous one until then, and those that it accepted stay with it. Of a
        delta of what is served, the delta is read, and small files of what it follows.

        Raises:
            ArtifactError: the artifact cannot be served, no URL can have its name, or the server is
                strict and has no store; the previous one still is.
            SignatureError: a trusted key cannot be read; the same.
        """
        async with self._one_load_at_a_time:
            # Followed once: all files come from one artifact even if the link changes now.
            directory = self._artifact.resolve()
            try:
                predictor = await _in_a_thread_that_ends(
                    partial(
                        Predictor.open,
                        directory,
                        history_store=self._config.history_store,
                        num_runners=self._config.num_workers,
                        trusted_keys=self._config.trusted_keys,
                        served=None if self.current is None else self.current.predictor,
                    )
                )
                loaded = LoadedModel.of(predictor)
                self._check_history(loaded.metadata)
                name = _in_urls(self.name or loaded.metadata.name)
            except Exception:
                self._metrics.loads.labels("refused").inc()
                raise
            metadata = loaded.metadata
            self.name = name
            self.current = loaded
            self._metrics.loads.labels("loaded").inc()
            self._metrics.model.info({"name": metadata.name, "version": metadata.version})
            logger.info("serving %s as %s, version %s", directory, self.name, metadata.version)

    def _check_history(self, metadata: PredictorMetadata) -> None:
        """A model that reads histories and gets none scores far worse, and nobody would notice."""
        self._metrics.has_history_store.set(metadata.has_history_store)
        if metadata.has_history_store or not metadata.reads_history:
            return
        problem = (
            f"{metadata.name} reads histories, and there is no history_store: requests that do not "
            "bring their behaviours have none"
        )
        if self._config.strict:
            raise ArtifactError(f"{problem}; with strict = true the server does not start so")
        logger.warning("%s (cdp_empty_histories_total counts them)", problem)

    async def reload(self) -> None:
        """As `load`, but an artifact that cannot be served is only logged."""
        try:
            await self.load()
        except Exception as error:
            logger.error("the artifact was refused, the previous one stays: %s", error)


def _in_urls(name: str) -> str:
    """The name of the model, which is one part of a path."""
    if "/" in name:
        raise ArtifactError(
            f"the model's name {name!r} has a '/', so no URL could ask for it: set model_name to "
            "one without"
        )
    return name


async def _in_a_thread_that_ends(open_predictor: Callable[[], Predictor]) -> Predictor:
    """Only then can the compiled model be unloaded (compiled.load_compiled).

    The process ends after it: cut off in C++ code, it would take the process down.
    """
    opened: Future[Predictor] = Future()

    def run() -> None:
        opened.set_running_or_notify_cancel()  # whoever waits may leave, it opens all the same
        try:
            opened.set_result(open_predictor())
        except BaseException as error:
            opened.set_exception(error)

    threading.Thread(target=run, name="loader").start()
    return await asyncio.wrap_future(opened)
