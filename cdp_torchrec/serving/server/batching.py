"""Dynamic batching: requests that arrive together are scored together."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cdp_torchrec.serving.encode import EncodedRequest
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.server.config import ServerConfig
from cdp_torchrec.serving.server.fair_queue import NOBODY, Client, FairQueue
from cdp_torchrec.serving.server.metrics import ServerMetrics


@dataclass(frozen=True)
class _Job:
    predictor: Predictor
    request: EncodedRequest
    arrival: float = field(default_factory=time.monotonic)
    probability: Future[np.ndarray] = field(default_factory=Future)

    @property
    def num_candidates(self) -> int:
        return self.request.num_candidates


class Batcher:
    """A bounded queue of requests, and the threads that score them.

    A batch has one predictor, so that a request is scored by the model that checked it, whatever is
    loaded meanwhile.
    """

    def __init__(self, config: ServerConfig, metrics: ServerMetrics) -> None:
        """Start the threads."""
        self._config = config
        self._metrics = metrics
        self._jobs: FairQueue[_Job] = FairQueue(most=config.queue_length)
        self._num_candidates = 0
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        metrics.watch_queue(lambda: len(self._jobs))
        for _ in range(config.num_workers):
            self._start_thread()

    def submit(
        self, predictor: Predictor, request: EncodedRequest, *, client: Client = NOBODY
    ) -> Future[np.ndarray]:
        """Queue a request that `predictor.encode` made; a cancelled future is not scored.

        Raises:
            QueueFullError: too many are waiting.
            StoppingError: after `close`.
        """
        job = _Job(predictor, request)
        with self._changed:
            self._jobs.push(job, client=client, cost=job.num_candidates)
            self._num_candidates += job.num_candidates
            self._changed.notify_all()
        return job.probability

    def close(self) -> None:
        """Score what is queued, and end the threads."""
        with self._changed:
            self._jobs.close()
            self._changed.notify_all()
        while self._threads:
            for thread in list(self._threads):
                thread.join()

    def _start_thread(self, jobs: Sequence[_Job] = ()) -> None:
        thread = threading.Thread(target=self._work, args=(jobs,), name="scorer", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, jobs: Sequence[_Job]) -> None:
        """Score what one predictor has checked; another one gets another thread.

        A compiled model can be unloaded only when the threads that ran it have ended.
        """
        try:
            while jobs := jobs or self._next_batch():
                predictor = jobs[0].predictor
                self._score_waiting(jobs)
                jobs = self._next_batch()
                if jobs and jobs[0].predictor is not predictor:
                    self._start_thread(jobs)
                    return
        finally:
            self._threads.discard(threading.current_thread())

    def _score_waiting(self, jobs: Sequence[_Job]) -> None:
        # Nobody waits for a future that timed out.
        waiting = [job for job in jobs if job.probability.set_running_or_notify_cancel()]
        if waiting:
            self._score(waiting)

    def _next_batch(self) -> list[_Job]:
        """The jobs to score next; empty when all is done after `close`."""
        with self._changed:
            while True:
                if not self._jobs and self._jobs.is_closed:
                    return []
                wait_s = self._time_to_wait()
                if wait_s is not None and wait_s <= 0:
                    return self._pop_batch()
                self._changed.wait(wait_s)

    def _time_to_wait(self) -> float | None:
        """Seconds until the queue's head should be scored; None: until something arrives."""
        if not self._jobs:
            return None
        if self._jobs.is_closed or self._num_candidates >= self._config.max_batch_candidates:
            return 0.0
        return self._jobs.first().arrival + self._config.max_wait_ms / 1000 - time.monotonic()

    def _pop_batch(self) -> list[_Job]:
        jobs = [self._jobs.pop()]
        total = jobs[0].num_candidates
        while self._jobs and self._jobs.first().predictor is jobs[0].predictor:
            total += self._jobs.first().num_candidates
            if total > self._config.max_batch_candidates:
                break
            jobs.append(self._jobs.pop())
        self._num_candidates -= sum(job.num_candidates for job in jobs)
        return jobs

    def _score(self, jobs: Sequence[_Job]) -> None:
        try:
            found = jobs[0].predictor.score_encoded([job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].probability.set_exception(error)
                return
            # Only the culprit shall fail.
            for job in jobs:
                self._score([job])
            return
        self._metrics.batch_requests.observe(len(jobs))
        self._metrics.batch_candidates.observe(sum(job.num_candidates for job in jobs))
        for job, probability in zip(jobs, found, strict=True):
            job.probability.set_result(probability)
