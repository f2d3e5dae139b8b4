"""Settings of the endpoint benchmark."""

from pathlib import Path
from typing import Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts
from cdp_torchrec.serving.server.config import ServerConfig


class EndpointSettings(Config):
    """The load."""

    dataset: Path | None = None
    """Dataset whose test requests are sent, and whose history the server reads; the one that the
    artifact was trained on if not given."""
    reload: Path | None = None
    """Artifact that takes over half-way; the same one again if not given."""
    duration_s: PositiveFloat = 60.0
    """How long clients ask."""
    num_clients: PositiveInt = 8
    """Clients that send valid requests, each the next one as soon as the last one is answered."""
    num_attackers: NonNegativeInt = 2
    """Clients that send malformed requests in the same way."""
    attack_s: NonNegativeFloat = 5.0
    """Afterwards, how long each attack lasts, while one valid client asks; 0: no attacks."""
    num_requests: PositiveInt = 500
    """Different requests."""
    output: Path | None = None
    """Directory for the table (endpoint.md) and all numbers (endpoint.json)."""


class EndpointBenchmarkConfig(Config):
    """The load, and the server that bears it."""

    benchmark: EndpointSettings = EndpointSettings()
    """The load."""
    server: ServerConfig = ServerConfig()
    """Settings of the server; its port is a free one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = {
            "port": "is a free one here",
            "model_name": "is the benchmark's affair",
            "history_store": "is benchmark.dataset",
        }
        conflicts = [
            (f"server.{key}", f"{text}; leave it out")
            for key, text in own.items()
            if getattr(self.server, key) != ServerConfig.model_fields[key].default
        ]
        if self.benchmark.num_clients + self.benchmark.num_attackers > (
            most := self.server.max_connections_per_client
        ):
            conflicts.append(
                (
                    "benchmark.num_clients",
                    f"with num_attackers = {self.benchmark.num_attackers}, more than the server "
                    f"accepts of one address (server.max_connections_per_client = {most})",
                )
            )
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self
