"""Days appended to a dataset: where they lie, in which order, and what is read of them.

    <dataset>/days/<name>/       what a day added; appears by one rename, and never changes
        day.toml                 its span, its sizes, and the vocabularies with its new ids
        requests/part-*.parquet  as those of train and test
        history/                 a segment of the store: the behaviours of that day
        vocabulary/*.parquet     new ids, whose codes follow those of the day before
        counts/*.parquet         how often ids that were known occur in it
    <dataset>/merged/<date>/     one store of all behaviours up to that day, in place of segments

Nothing that was there is changed by a day, so whoever reads less of the log reads what it always
was: models that are older than a day are as good as before.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tomli_w
from pydantic import ValidationError

from cdp_torchrec.config import Config, ConfigError
from cdp_torchrec.config.shipped import find_shipped
from cdp_torchrec.data.config import TEST, TRAIN, DataConfig
from cdp_torchrec.data.schema import (
    DAY_VERSION,
    USER_ENTITY,
    DatasetError,
    Day,
    Entity,
    Schema,
    Split,
    load_schema,
)

DAYS, DAY = "days", "day.toml"
_MERGED_FOLDER, MERGED = "merged", "store.toml"

RecordT = TypeVar("RecordT", bound=Config)


class MergedStore(Config):
    """What `merged/<date>/store.toml` says."""

    through: str
    """The last day whose behaviours are in it."""
    num_behaviours: int


@dataclass(frozen=True)
class Segment:
    """A part of the history store: behaviours later than those of the segment before it."""

    root: Path
    """Where its manifest lies; the arrays are in the folder `history` there."""
    num_behaviours: int
    entities: Mapping[str, Entity]
    """The vocabularies that it was written with."""


def appended_names(dataset: Path) -> list[str]:
    """Names of all appended days in the order of time, at the cost of listing a directory."""
    return _names(dataset / DAYS)


def day_folder(dataset: Path, name: str) -> Path:
    """Where an appended day lies."""
    return dataset / DAYS / name


def merged_folder(dataset: Path, through: str) -> Path:
    """Where a merged store lies."""
    return dataset / _MERGED_FOLDER / through


def request_folder(dataset: Path, period: str) -> Path:
    """Where the request files of a period lie."""
    if period in (TRAIN, TEST):
        return dataset / period
    return day_folder(dataset, period) / "requests"


def load_days(dataset: Path, base: Schema) -> tuple[Day, ...]:
    """All days of a dataset in the order of time.

    Args:
        dataset: dataset directory.
        base: its schema.

    Raises:
        DatasetError: one is damaged, missing, or was appended to another dataset.
    """
    days: list[Day] = []
    entities = base.entities
    first_request = sum(split.requests for split in base.splits.values())
    for name in _names(dataset / DAYS):
        path = day_folder(dataset, name) / DAY
        day = _read(path, Day)
        if day.version != DAY_VERSION:
            raise DatasetError(
                f"{path}: version {day.version}, this release reads version {DAY_VERSION}"
            )
        if (day.name, day.entities_before, day.first_request) != (name, entities, first_request):
            raise DatasetError(
                f"{path}: this day was appended to something else than what is there now: a day "
                "before it is missing, or it belongs to another dataset; bring that back, or "
                "prepare the dataset again"
            )
        entities, first_request = day.entities, first_request + day.requests.requests
        days.append(day)
    return tuple(days)


def requests_of_periods(dataset: Path) -> dict[str, int]:
    """How many requests each period of a dataset has, in the order of time.

    Raises:
        DatasetError: there is no readable dataset, or a day is damaged.
    """
    base = load_schema(dataset)
    of_days = {day.name: day.requests for day in load_days(dataset, base)}
    splits = {name: base.splits[name] for name in (TRAIN, TEST)} | of_days
    return {name: split.requests for name, split in splits.items()}


def grown(base: Schema, days: Sequence[Day], *, trained_days: int | None = None) -> Schema:
    """The schema of a dataset with some of its days, the first ones.

    Args:
        base: its schema.
        days: the days.
        trained_days: how many of them a training knows; None: all.
    """
    if not days:
        return base
    entities = days[-1].entities
    history = base.history.model_copy(
        update={
            "num_users": entities[USER_ENTITY].num_ids,
            "num_behaviours": base.history.num_behaviours + sum(d.num_behaviours for d in days),
        }
    )
    return base.model_copy(
        update={
            "entities": entities,
            "history": history,
            "days": tuple(days),
            "trained_days": len(days) if trained_days is None else trained_days,
        }
    )


def load_grown_schema(dataset: Path) -> Schema:
    """The schema of a dataset with all that was appended to it.

    Raises:
        DatasetError: there is no readable dataset, or a day is damaged.
    """
    base = load_schema(dataset)
    return grown(base, load_days(dataset, base))


def read_schema(config: DataConfig) -> Schema:
    """The schema of the periods that are read, without the excluded features.

    A schema alone, as some layers of the package have it for planning, is found by name.

    Raises:
        ConfigError: a period or an excluded feature is unknown, or one is needed.
        DatasetError: there is no readable dataset.
    """
    dataset = find_shipped(config.dir)
    schema = _of_periods(dataset, load_schema(dataset), config)
    try:
        return schema.without(config.exclude_features)
    except KeyError as error:
        raise ConfigError.of([f"data.exclude_features: {error.args[0]}"]) from error


def vocabulary_paths(dataset: Path, days: Sequence[Day], entity: str) -> list[Path]:
    """Files of a vocabulary in the order of its codes."""
    folders = [dataset, *(day_folder(dataset, day.name) for day in days)]
    return [folder / "vocabulary" / f"{entity}.parquet" for folder in folders]


def segments(dataset: Path, days: Sequence[Day]) -> list[Segment]:
    """The segments of the store in the order of time.

    Args:
        dataset: dataset directory.
        days: the first days, or all. A merged store may have later ones, too, which nobody sees
            who asks for what was before a request.

    Raises:
        DatasetError: a merged store is damaged, or a day of it is missing.
    """
    base = load_schema(dataset)
    merged = _names(dataset / _MERGED_FOLDER)
    if not merged:
        first = Segment(dataset, base.history.num_behaviours, base.entities)
        return [first, *(_segment(dataset, day) for day in days)]
    path = merged_folder(dataset, merged[-1]) / MERGED
    store = _read(path, MergedStore)
    of_day = {day.name: day for day in load_days(dataset, base)}
    if store.through not in of_day:
        raise DatasetError(f"{path}: holds the day {store.through}, which is not there any more")
    entities = of_day[store.through].entities
    later = [_segment(dataset, day) for day in days if day.name > store.through]
    return [Segment(path.parent, store.num_behaviours, entities), *later]


def superseded(dataset: Path) -> list[Path]:
    """Folders of the store whose behaviours a merged store holds: nobody reads them any more."""
    names = _names(dataset / _MERGED_FOLDER)
    if not names:
        return []
    days = [day_folder(dataset, name) for name in _names(dataset / DAYS) if name <= names[-1]]
    roots = [dataset, *days, *(merged_folder(dataset, name) for name in names[:-1])]
    return [root / "history" for root in roots]


def parts(dataset: Path) -> list[Path]:
    """All that has a manifest of its own: the dataset, its days, and the merged store."""
    merged = [merged_folder(dataset, name) for name in _names(dataset / _MERGED_FOLDER)[-1:]]
    return [dataset, *(day_folder(dataset, name) for name in _names(dataset / DAYS)), *merged]


def save_record(folder: Path, record: Day | MergedStore) -> None:
    """Write the file that says what a day or a merged store is."""
    name = DAY if isinstance(record, Day) else MERGED
    text = tomli_w.dumps(record.model_dump(mode="json", exclude_none=True))
    (folder / name).write_text(text)


def _segment(dataset: Path, day: Day) -> Segment:
    return Segment(day_folder(dataset, day.name), day.num_behaviours, day.entities)


def _names(folder: Path) -> list[str]:
    """What is there as a whole; what is being written has a name that begins with a dot."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _read(path: Path, kind: type[RecordT]) -> RecordT:
    try:
        return kind.model_validate(tomllib.loads(path.read_text()), strict=False)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise DatasetError(f"{path}: is missing or damaged: {error}") from error


def _of_periods(dataset: Path, base: Schema, config: DataConfig) -> Schema:
    periods = (*config.train_on, config.test_on)
    if periods == (TRAIN, TEST):
        return base
    days = load_days(dataset, base)
    known = {**base.splits, **{day.name: day.requests for day in days}}
    unknown = [period for period in periods if period not in known]
    if unknown:
        raise ConfigError.of(
            [
                f"data.train_on, data.test_on: {dataset} has no period '{unknown[0]}'; it has "
                f"{', '.join(known)}"
            ]
        )
    names = [day.name for day in days]
    # Days between two periods are read, too: their ids come first, and their behaviours count.
    trained = 1 + names.index(config.train_on[-1]) if config.train_on[-1] in names else 0
    read = 1 + names.index(config.test_on) if config.test_on in names else 0
    schema = grown(base, days[:read], trained_days=trained)
    train = _together([known[period] for period in config.train_on])
    splits = {"train": train, "test": known[config.test_on]}
    # What the true probabilities reach was measured on the test split.
    bayes = base.bayes if config.test_on == TEST else {}
    return schema.model_copy(update={"splits": splits, "bayes": bayes})


def _together(splits: Sequence[Split]) -> Split:
    return Split(
        requests=sum(split.requests for split in splits),
        impressions=sum(split.impressions for split in splits),
        clicks=sum(split.clicks for split in splits),
        first_timestamp=splits[0].first_timestamp,
        last_timestamp=splits[-1].last_timestamp,
    )
