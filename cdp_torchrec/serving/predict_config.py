"""Settings of the prediction for a file of requests."""

from pathlib import Path

from pydantic import PositiveInt

from cdp_torchrec.config import Config, ConfigError
from cdp_torchrec.whole_file import why_unwritable


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


def check_output(output: Path, requests: Path, artifact: Path) -> None:
    """Before anything is scored.

    Args:
        output: file to write.
        requests: parquet file, or directory of such files.
        artifact: directory of the export.

    Raises:
        ConfigError: it cannot be written, or is or would be one of the requests or a file of the
            artifact.
    """
    if output.exists() and not output.is_file():
        what = "a directory" if output.is_dir() else "no regular file"
        raise ConfigError(f"output = '{output}': {what}; name a file")
    if reason := why_unwritable(output.parent):
        raise ConfigError(f"output = '{output}': {reason}")
    own, read = output.resolve(), requests.resolve()
    if own == read or (read.is_dir() and own.parent == read):
        raise ConfigError(
            f"output = '{output}': is among the requests, {requests}; write it elsewhere"
        )
    if artifact.resolve() in own.parents:
        raise ConfigError(
            f"output = '{output}': lies in the artifact, {artifact}; write it elsewhere"
        )
