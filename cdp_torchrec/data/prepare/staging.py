"""From a staging directory of raw parquet files to a dataset directory.

A converter (trivago, synthetic ...) writes what its log says in two plain tables; everything that
every log needs is done here, out of core: codes by descending training count, the global time
order, the split, exact history features and the history store.

    staging/requests/*.parquet     request_id, user_id, timestamp, the features of the spec, a list
                                   `label` and optionally `click_probability`; raw values
    staging/behaviours/*.parquet   user_id, item, category, action, timestamp; raw values
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from cdp_torchrec.data.manifest import write_manifest
from cdp_torchrec.data.plausibility import judge, refuse_errors
from cdp_torchrec.data.prepare.database import EngineLimits, Tables, open_tables, scalar
from cdp_torchrec.data.prepare.history_files import attribute_scales, code_behaviours, write_history
from cdp_torchrec.data.prepare.moments import Moments
from cdp_torchrec.data.prepare.request_files import write_requests
from cdp_torchrec.data.prepare.request_tables import code_requests
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.staging_checks import load_staging
from cdp_torchrec.data.prepare.starter import write_starter
from cdp_torchrec.data.prepare.summarise import summarise
from cdp_torchrec.data.prepare.summary_text import describe_summary
from cdp_torchrec.data.prepare.vocabulary import build_vocabularies
from cdp_torchrec.data.prepare.workplace import (
    PreparationError,
    dataset_beside,
    preparing,
    staging_beside,
)
from cdp_torchrec.data.schema import Entity, HistorySchema, Schema
from cdp_torchrec.data.tables.vocabulary_digest import vocabulary_digest
from cdp_torchrec.progress import ProgressBar

__all__ = [
    "DatasetSpec",
    "EngineLimits",
    "PreparationError",
    "build_dataset",
    "preparing",
    "request_parts",
    "staging_beside",
]


def build_dataset(
    staging: Path,
    output: Path,
    spec: DatasetSpec,
    limits: EngineLimits | None = None,
    *,
    log: Path | None = None,
) -> Schema:
    """Build the dataset directory `output` from `staging`; all of it or nothing.

    The same staging files give the same dataset, whatever the limits. In it lies a first
    configuration for training on it, starter.toml. A summary of the log is printed.

    Args:
        staging: directory with `requests/*.parquet` and `behaviours/*.parquet`.
        output: directory to make; must not exist. Intermediate tables lie beside it.
        spec: what the staging files mean.
        limits: which engine, and its memory and threads.
        log: what errors about the log as a whole name: where it came from, if the staging files
            are not the user's own.

    Raises:
        DatasetError: a staging file is unreadable or breaks the contract, no sane log looks like
            all of them together, or `output` exists.
        PreparationError: the dataset cannot be written.
    """
    with preparing(output), dataset_beside(output) as partial:
        work = partial / "work"
        with open_tables(work, limits or EngineLimits()) as tables:
            schema = _build(tables, staging, partial, spec)
        shutil.rmtree(work)
        schema.save(partial)
        _summarise(partial, schema, named=log or staging)
        write_starter(partial, data_dir=output)
        write_manifest(partial)
    return schema


def request_parts(
    connection: duckdb.DuckDBPyConnection, directory: Path, *, size: int
) -> Iterator[tuple[str, Path]]:
    """Cut table `requests` at its column `number` into parts that are staged one by one.

    Yields:
        SQL clause that selects the rows of a part, and its file in `directory`.
    """
    num_requests = scalar(connection, "SELECT count(*) FROM requests")
    for start in range(0, num_requests, size):
        path = directory / f"part-{start // size:05d}.parquet"
        yield f"WHERE number >= {start} AND number < {start + size}", path


def _summarise(dataset: Path, schema: Schema, *, named: Path) -> None:
    """Print and store what the log looks like as a whole; refuse what no sane log looks like."""
    summary = summarise(dataset, schema)
    findings = judge(summary)
    doubts = [finding for finding in findings if finding.level == "warning"]
    print(describe_summary(schema, summary, doubts), flush=True)
    refuse_errors(named, findings)
    summary.save(dataset)


def _build(connection: Tables, staging: Path, output: Path, spec: DatasetSpec) -> Schema:
    with ProgressBar("prepare", total=6, unit="stages") as bar:
        bar.begin("check")
        log = load_staging(connection, staging, spec)
        bar.begin("vocabularies")
        num_ids = build_vocabularies(connection, spec, output / "vocabulary")
        bar.begin("history")
        num_behaviours = code_behaviours(connection, spec)
        write_history(connection, spec, output / "history", num_ids)
        bar.begin("requests")
        has_probability = log.has_probability
        code_requests(connection, spec, output / "vocabulary", has_probability=has_probability)
        num_train = log.splits["train"].requests
        num_requests = num_train + log.splits["test"].requests
        bar.begin("train split")
        train, test = range(num_train), range(num_train, num_requests)
        moments = write_requests(
            connection, spec, output / "train", train, has_probability=has_probability
        )
        bar.begin("test split")
        write_requests(connection, spec, output / "test", test, has_probability=has_probability)
    return Schema(
        name=spec.name,
        source=spec.source,
        entities={
            entity: Entity(
                num_ids=count, digest=vocabulary_digest(output / "vocabulary" / f"{entity}.parquet")
            )
            for entity, count in num_ids.items()
        },
        features=tuple(
            f.model_copy(update=_scale(moments[f.name])) if f.kind == "number" else f
            for f in spec.features
        ),
        history=HistorySchema(
            item_entity=spec.item_entity,
            category_entity=spec.category_entity,
            action_entity=spec.action_entity,
            attributes=attribute_scales(output / "history", spec.attributes, before=spec.test_from),
            num_behaviours=num_behaviours,
            num_users=num_ids["user"],
        ),
        splits=dict(log.splits),
        bayes=dict(spec.bayes),
    )


def _scale(moments: Moments) -> Mapping[str, float]:
    return {"mean": moments.mean, "std": moments.std}
