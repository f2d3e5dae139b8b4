"""A later day of a mapped log: read by the mapping of the dataset, and appended.

A day has no splits, so `split.test_from` and `split.test_share` say nothing here, and it has not
the log before it, so nothing is drawn from that. All else of a mapping is of rows and columns, and
means what it means for the whole log.
"""

from pathlib import Path

import duckdb

from cdp_torchrec.data.prepare.append import append_log
from cdp_torchrec.data.prepare.database import EngineLimits
from cdp_torchrec.data.prepare.log_tables import stage_log
from cdp_torchrec.data.prepare.mapped.agreement import check_all_columns
from cdp_torchrec.data.prepare.mapped.generic import read_log, spec_of
from cdp_torchrec.data.prepare.mapped.mapping_config import MappingConfig
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import DatasetError, Day, load_schema


def append_mapped_day(
    mapping: MappingConfig,
    source: Path,
    dataset: Path,
    *,
    limits: EngineLimits | None = None,
    name: str | None = None,
) -> Day:
    """Add a day of a mapped log to the dataset that `prepare_generic` made; all of it or nothing.

    Args:
        mapping: that of the dataset.
        source: folder with the files of the day.
        dataset: dataset directory.
        limits: memory and threads of the engine.
        name: of the day, as a period; None: the date of its first request at UTC.

    Raises:
        DatasetError: the mapping draws negatives, or has not the columns of the dataset; files are
            missing, damaged, or not what the mapping says; or as `append_day`.
        PreparationError: the day cannot be written.
    """
    spec = spec_of_days(mapping, dataset)
    limits = limits or EngineLimits()

    def stage(staging: Path) -> None:

        def read(connection: duckdb.DuckDBPyConnection) -> DatasetSpec:
            read_log(connection, mapping, source)
            return spec

        stage_log(source, staging, read, limits)

    return append_log(dataset, source, stage, limits, name=name)


def spec_of_days(mapping: MappingConfig, dataset: Path) -> DatasetSpec:
    """What the days hold that a mapping adds to a dataset.

    Raises:
        DatasetError: the mapping draws negatives, or has not the columns of the dataset.
    """
    if mapping.sampling:
        raise DatasetError(
            f"{dataset}: the mapping draws negatives ([sampling]) among all that was before, which "
            "the files of a day do not have: prepare the whole log with its new days"
        )
    expected = DatasetSpec.of_dataset(load_schema(dataset))
    spec = spec_of(mapping, test_from=expected.test_from)
    check_all_columns(dataset, expected, spec)
    return spec
