"""What the server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
_CANDIDATES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class ServerMetrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Start all counts at zero."""
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "cdp_requests", "Inferences answered, by HTTP status", ["status"], registry=registry
        )
        self.latency = Histogram(
            "cdp_request_seconds",
            "Time from the headers of an inference to its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_requests = Histogram(
            "cdp_batch_requests", "Requests of a batch", buckets=_REQUESTS, registry=registry
        )
        self.batch_candidates = Histogram(
            "cdp_batch_candidates", "Candidates of a batch", buckets=_CANDIDATES, registry=registry
        )
        self.loads = Counter(
            "cdp_model_loads", "Artifacts loaded or refused", ["result"], registry=registry
        )
        self.empty_histories = Counter(
            "cdp_empty_histories",
            "Inferences without a single behaviour: neither sent nor in the store",
            registry=registry,
        )
        self.missing_values = Counter(
            "cdp_missing_values",
            "Values that inferences left out, by feature",
            ["feature"],
            registry=registry,
        )
        self.unknown_ids = Counter(
            "cdp_unknown_ids",
            "Ids of inferences that training never saw, by feature",
            ["feature"],
            registry=registry,
        )
        self.has_history_store = Gauge(
            "cdp_history_store", "1: there is a history store", registry=registry
        )
        self.connections = Gauge("cdp_connections", "Open connections", registry=registry)
        self.closed = Counter(
            "cdp_connections_closed",
            "Connections that the server closed, by reason",
            ["reason"],
            registry=registry,
        )
        # Memory, CPU time and open files, by the names that every Prometheus client gives them.
        ProcessCollector(registry=registry)
        self.model = Info("cdp_model", "The model that is served", registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Show the length of the queue, whenever somebody asks."""
        gauge = Gauge("cdp_queue_length", "Requests that wait", registry=self._registry)
        gauge.set_function(length)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
