"""What makes two datasets the same to a model: which raw id has which code, and what numbers mean.

A model knows codes and scaled numbers only. Two preparations of one log may agree in every count
and still give a code to another id: embeddings of the one, read with the codes of the other, score
at random. So a dataset, a checkpoint and an artifact each carry a digest of the content, and where
two of them meet they are compared. The digest is of what things mean, never of how files say it:
paths, dates, parquet encodings and time spans do not enter.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field, NonNegativeInt

from cdp_torchrec.config import Config


class VocabularyDigest(Config):
    """Identity of the raw ids of an entity."""

    num_ids: NonNegativeInt
    """Codes run from 1 to num_ids."""
    digest: str | None = None
    """`vocabulary_digest` of the raw ids; None: declared, for a log that is not there."""


class DatasetDigest(Config):
    """Everything of a dataset that decides what the inputs of a model mean."""

    vocabularies: Mapping[str, VocabularyDigest]
    """By entity: of all features and of the history."""
    features: Mapping[str, str]
    """What each feature is, in words, by its name; their order is that of the model's inputs."""
    history: Mapping[str, str]
    """Entities of the behaviours' parts."""
    stages: Mapping[str, tuple[VocabularyDigest, ...]] = Field(default={}, exclude=True)
    """How the vocabularies of a dataset have grown, by entity, each one the beginning of the next.
    What knows one of them reads the dataset. No part of the identity, and not stored with it."""

    @property
    def fingerprint(self) -> str:
        """All of it in 16 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def differences(self, other: "DatasetDigest", *, here: str, there: str) -> list[str]:
        """What differs, a line for each vocabulary and feature.

        Args:
            other: what this one is compared with.
            here: name of this one in the lines, such as "the run".
            there: name of the other one.
        """
        lines = [
            *_vocabulary_lines(self.vocabularies, other, here, there),
            *_lines("feature", self.features, other.features, here, there),
            *_lines("history", self.history, other.history, here, there),
        ]
        if not lines and list(self.features) != list(other.features):
            lines.append(
                f"features stand in another order: {', '.join(self.features)} in {here}, "
                f"{', '.join(other.features)} in {there}"
            )
        return lines

    def differs_by_days(self, other: "DatasetDigest") -> bool:
        """Whether the other one may be the same dataset before days that this one has seen."""
        here, there = self.vocabularies, other.vocabularies
        return (
            (self.features, self.history) == (other.features, other.history)
            and here.keys() == there.keys()
            and all(there[name].num_ids <= here[name].num_ids for name in here)
            and any(there[name].num_ids < here[name].num_ids for name in here)
        )


def mismatch(
    found: DatasetDigest, other: DatasetDigest, *, trained: str, dataset: Path, advice: str
) -> str | None:
    """Why what was trained cannot read a dataset; None: it can.

    The one message of train, evaluate, export, distill, benchmarks, prediction and serving.

    Args:
        found: of what was trained.
        other: of the dataset.
        trained: names the checkpoint or the artifact.
        dataset: the dataset.
        advice: what to do.
    """
    lines = found.differences(other, here="the model", there="the dataset")
    if not lines:
        return None
    if found.differs_by_days(other):
        advice = f"if the dataset lacks days, append them (prepare_data append); or {advice}"
    head = (
        f"{trained} was trained on another dataset than {dataset} (digest {found.fingerprint}, "
        f"not {other.fingerprint}), so codes or numbers mean something else to it:"
    )
    return "\n  ".join([head, *lines, advice])


def _vocabulary_lines(
    mine: Mapping[str, VocabularyDigest], other: DatasetDigest, here: str, there: str
) -> Iterator[str]:
    for name in dict.fromkeys([*mine, *other.vocabularies]):
        a, b = mine.get(name), other.vocabularies.get(name)
        if a in other.stages.get(name, ()):
            continue  # the dataset has grown since, or the model has seen more of its days
        if a is None or b is None:
            yield f"vocabulary {name}: only in {here if b is None else there}"
        elif a.num_ids != b.num_ids:
            yield f"vocabulary {name}: {a.num_ids:,} ids in {here}, {b.num_ids:,} in {there}"
        elif a.digest != b.digest:
            yield f"vocabulary {name}: {a.num_ids:,} ids in both, other codes"


def _lines(
    what: str, mine: Mapping[str, str], others: Mapping[str, str], here: str, there: str
) -> Iterator[str]:
    for name in dict.fromkeys([*mine, *others]):
        a, b = mine.get(name), others.get(name)
        if a is None or b is None:
            yield f"{what} {name}: only in {here if b is None else there}"
        elif a != b:
            yield f"{what} {name}: {a} in {here}, {b} in {there}"
