"""What a checkpoint and the mark of the best one say about themselves: small, strict JSON files."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from cdp_torchrec.config import Config
from cdp_torchrec.config.errors import check
from cdp_torchrec.config.keys import key_tree
from cdp_torchrec.config.layers import Layers
from cdp_torchrec.data.identity import DatasetDigest, mismatch

FORMAT_VERSION = 2
CHECKPOINT = "checkpoint.json"
BEST = "best.json"

RecordT = TypeVar("RecordT", bound=Config)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, found, or loaded into this model."""

    user_error = True


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Progress:
    """Where a training stands."""

    step: NonNegativeInt
    """Optimizer steps done."""
    position: NonNegativeInt
    """Data position: impressions consumed, over all epochs."""
    validations_without_gain: NonNegativeInt = 0
    """Validations in a row that were not the best, for early stopping."""
    inherited_steps: NonNegativeInt = 0
    """Steps of the runs that this one was forked from, which its optimizers have done, too."""

    def forked(self) -> "Progress":
        """Where a run begins that is forked from here: its steps and its data are its own."""
        return Progress(step=0, position=0, inherited_steps=self.inherited_steps + self.step)


class CheckpointRecord(Config):
    """Contents of `checkpoint.json`."""

    format_version: PositiveInt
    """Of the checkpoint's files."""
    release: str | None = None
    """Version and commit of cdp_torchrec that wrote it; None: before that was recorded."""
    progress: Progress
    """Where the training stood."""
    dataset_digest: DatasetDigest
    """Which raw id has which code, and what the features are."""
    world_size: PositiveInt
    """Number of ranks that wrote it."""

    @property
    def writer(self) -> str:
        """Who wrote it, in words."""
        return f"cdp_torchrec {self.release}" if self.release else "an earlier cdp_torchrec"


class BestRecord(Config):
    """Contents of `best.json`: the best checkpoint of a run by validation."""

    format_version: PositiveInt = FORMAT_VERSION
    """Of the checkpoint's files."""
    checkpoint: str
    """Name of its directory."""
    metric: str
    """What was measured."""
    value: FiniteFloat
    """Its value."""


def check_dataset(
    record: CheckpointRecord, checkpoint: Path, dataset: Path, digest: DatasetDigest
) -> None:
    """Whether a checkpoint belongs to a dataset: the same ids have the same codes.

    Args:
        record: of the checkpoint.
        checkpoint: where it lies.
        dataset: where the dataset lies.
        digest: of the dataset as the model reads it.

    Raises:
        CheckpointError: it does not; names the vocabularies and features that differ.
    """
    differs = mismatch(
        record.dataset_digest,
        digest,
        trained=str(checkpoint),
        dataset=dataset,
        advice="name the dataset that it was trained on (data.dir=DIR), or train on this one",
    )
    if differs:
        raise CheckpointError(differs)


def read_record(record_class: type[RecordT], path: Path) -> RecordT:
    """Read a record.

    Args:
        record_class: what the file holds.
        path: the file.

    Raises:
        CheckpointError: it cannot be read, was written in another format, or a key is wrong; names
            the file and for each mistake the key, the value found and those allowed.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged: no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: is damaged: found a {type(data).__name__}, expected a table"
        )
    version = data.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        by = f", was written by cdp_torchrec {data['release']}" if "release" in data else ""
        raise CheckpointError(
            f"{path}: has format {version!r}{by}; this release reads {FORMAT_VERSION}: use the "
            "release that wrote it, or train again"
        )
    layers = Layers(key_tree(record_class))
    layers.add(data, path.name)
    record, mistakes = check(record_class, layers)
    if record is None:
        raise CheckpointError(
            "\n  ".join([f"{path}: is damaged, or of another release", *mistakes])
        )
    return record
