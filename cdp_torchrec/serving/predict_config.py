"""Settings of the prediction for a file of requests."""

from pathlib import Path

from pydantic import PositiveInt

from cdp_torchrec.config import Config


class PredictConfig(Config):
    """What is written, and where histories come from."""

    output: Path
    """Parquet file to write: one row per candidate, in the order of the requests."""
    history_store: Path | None = None
    """Dataset directory whose histories answer for requests without behaviours of their own; it
    must have been prepared with the artifact's vocabularies."""
    trusted_keys: tuple[Path, ...] = ()
    """PEM files of Ed25519 public keys: an artifact that none of them signed is refused."""
    keep: tuple[str, ...] = ()
    """Columns of the requests that are written, too. A list must have one element per candidate,
    unless it is a feature of the request; everything else is repeated for each candidate."""
    batch_size: PositiveInt = 2048
    """Candidates that are scored together, at least; a request is never split."""
