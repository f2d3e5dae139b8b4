"""What a checkpoint says about itself: a small, strict JSON file that covers all of its files."""

import json
from pathlib import Path
from typing import Any

import xxhash
from pydantic import ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from cdp_torchrec.config import Config
from cdp_torchrec.config.errors import check
from cdp_torchrec.config.keys import key_tree
from cdp_torchrec.config.layers import Layers
from cdp_torchrec.data.identity import DatasetDigest, mismatch
from cdp_torchrec.user_error import UserError

FORMAT_VERSION = 2
CHECKPOINT = "checkpoint.json"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, found, or loaded into this model."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing or is not what was written."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Progress:
    """Where a training stands."""

    step: NonNegativeInt
    """Optimizer steps done."""
    position: NonNegativeInt
    """Data position: impressions consumed, over all epochs."""
    validations_without_gain: NonNegativeInt = 0
    """Validations in a row that were not the best, for early stopping."""
    validation_is_due: bool = False
    """Whether the model at this step is still to be validated: a checkpoint is written first, and
    what was measured is added to it."""
    inherited_steps: NonNegativeInt = 0
    """Steps of the runs that this one was forked from, which its optimizers have done, too."""

    def forked(self) -> "Progress":
        """Where a run begins that is forked from here: its steps and its data are its own."""
        return Progress(step=0, position=0, inherited_steps=self.inherited_steps + self.step)


BEGINNING = Progress(step=0, position=0)
"""Of a run that goes on from nothing."""


class Validation(Config):
    """What a validation measured."""

    metric: str
    """Which metric decides."""
    value: FiniteFloat
    """Its value."""

    def is_better_than(self, other: "Validation") -> bool:
        """Whether this model is the better one; of equal ones the first stays the best."""
        if self.metric == "log_loss":
            return self.value < other.value
        return self.value > other.value


class FileRecord(Config):
    """A file of a checkpoint as it was written."""

    size: NonNegativeInt
    """Bytes."""
    digest: str
    """XXH3 of the content, 128 bits in hexadecimal."""


class CheckpointRecord(Config):
    """Contents of `checkpoint.json`."""

    format_version: PositiveInt
    """Of the checkpoint's files."""
    release: str
    """Version and commit of cdp_torchrec that wrote it."""
    progress: Progress
    """Where the training stood."""
    validation: Validation | None = None
    """Of this model; none if it was not validated, or the metric was undefined."""
    dataset_digest: DatasetDigest
    """Which raw id has which code, and what the features are."""
    training_digest: str | None = None
    """Of the requests and the history that it was trained on; None: the release that wrote it did
    not say."""
    world_size: PositiveInt
    """Number of ranks that wrote it."""
    files: dict[str, FileRecord]
    """All other files of the checkpoint, by name."""
    checksum: str = ""
    """Of everything above, as it is in the file."""

    @property
    def writer(self) -> str:
        """Who wrote it, in words."""
        return f"cdp_torchrec {self.release}"

    def sealed(self) -> str:
        """The text of the file, with the checksum over the rest of it."""
        data = self.model_dump(mode="json")
        return json.dumps(data | {"checksum": _checksum(data)}, indent=2)


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


def check_training_data(
    record: CheckpointRecord, checkpoint: Path, dataset: Path, digest: str
) -> None:
    """Whether a training that goes on reads the files that it was begun on.

    Args:
        record: of the checkpoint that it goes on from.
        checkpoint: where that lies.
        dataset: where the dataset lies.
        digest: of its requests and history, as its manifest has it.

    Raises:
        CheckpointError: it has other requests, another history or other soft labels, though codes
            are the same.
    """
    if record.training_digest not in (None, digest):
        raise CheckpointError(
            f"{checkpoint} was trained on other requests, another history or other soft labels "
            f"than those of {dataset} (digest {record.training_digest}, not {digest}), though ids "
            "have the same codes: name what the run was begun on (data.dir=DIR, "
            "data.soft_labels.file=FILE), or begin a new run from its weights "
            "(run.fork_from=RUN run.dir=NEW)"
        )


def read_record(path: Path) -> CheckpointRecord:
    """Read the record of a checkpoint.

    Args:
        path: the file.

    Raises:
        CheckpointError: it was written in another format; says by which release.
        DamagedCheckpointError: it cannot be read, is not what was written, or a key is wrong; names
            the file and for each mistake the key, the value found and those allowed.
    """
    try:
        data = json.loads(path.read_bytes())
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: is damaged: no JSON: {error}") from error
    if not isinstance(data, dict):
        raise DamagedCheckpointError(
            f"{path}: is damaged: found a {type(data).__name__}, expected a table"
        )
    version = data.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        by = f", was written by cdp_torchrec {data['release']}" if data.get("release") else ""
        raise CheckpointError(
            f"{path}: has format {version!r}{by}; this release reads {FORMAT_VERSION}: use the "
            "release that wrote it, or train again"
        )
    layers = Layers(key_tree(CheckpointRecord))
    layers.add(data, path.name)
    record, mistakes = check(CheckpointRecord, layers)
    if record is None:
        raise DamagedCheckpointError("\n  ".join([f"{path}: is damaged", *mistakes]))
    if record.checksum != _checksum(data):
        raise DamagedCheckpointError(f"{path}: is damaged: its checksum does not match")
    return record


def _checksum(data: dict[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
