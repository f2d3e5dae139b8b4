"""Settings of the server."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts


class ServerConfig(Config):
    """Where the server listens, how it batches, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of IPv4, :: for all. There is no authentication: that
    is the task of whatever stands in front."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0: any free port."""
    model_name: str | None = None
    """Name of the model in URLs, without "/"; that of the artifact at the start if not given."""
    history_store: Path | None = None
    """Dataset directory whose history/ answers for requests without behaviours."""
    trusted_keys: tuple[Path, ...] = ()
    """PEM files of Ed25519 public keys: an artifact that none of them signed is refused. If none
    is given, whoever can write the artifact's directory is trusted to run code in this process."""
    strict: bool = False
    """Refuse to start without the history store that the model reads, and refuse requests that
    leave a feature out, that name neither user nor history, or whose candidates the model does not
    know."""
    reload_token_file: Path | None = None
    """File with the secret that a reload over HTTP must bring ("Authorization: Bearer ...").
    Without one, only the machine itself may ask for a reload."""
    max_batch_candidates: PositiveInt = 1024
    """Requests are scored together up to this many candidates; a longer request goes alone."""
    max_wait_ms: NonNegativeFloat = 1.0
    """How long the first request of a batch waits for company while nothing else is scored; less
    than timeout_s."""
    num_workers: PositiveInt = 1
    """Batches that are scored at the same time, each by a thread of its own."""
    queue_length: PositiveInt = 256
    """Requests that may wait; further ones get status 429."""
    timeout_s: PositiveFloat = 2.0
    """For the arrival of a body (else 408), and then for its scores (else 504)."""
    header_timeout_s: PositiveFloat = 5.0
    """For the arrival of a request's headers; then the connection is closed."""
    idle_timeout_s: PositiveInt = 15
    """After an answer, for the next request; then the connection is closed."""
    max_connections: PositiveInt = 512
    """Further ones take the place of the one that has been idle longest. Less where the limit on
    open files is low."""
    max_connections_per_client: PositiveInt = 256
    """Of one address."""
    max_body_bytes: PositiveInt = 4 * 2**20
    """Longer bodies get status 413, compressed or not."""
    max_body_values: PositiveInt = 200_000
    """JSON with more commas gets status 413 before it is parsed."""
    max_waiting_bytes: PositiveInt = 64 * 2**20
    """Of all large bodies that are being received or processed, and half of it for those of one
    address; more get status 429."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_wait_ms >= 1000 * self.timeout_s:
            # A request that comes alone would get no answer but 504.
            raise ConfigConflicts(
                [("max_wait_ms", f"must be less than timeout_s, {1000 * self.timeout_s:g} ms")]
            )
        return self
