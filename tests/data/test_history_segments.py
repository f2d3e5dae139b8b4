"""A store of segments answers as one that was made of the whole log at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cdp_torchrec.data.config import HistoryConfig
from cdp_torchrec.data.days import load_grown_schema, segments
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.segments import SegmentedHistory, open_history
from cdp_torchrec.data.history.store import Behaviours, BehaviourSource, HistoryStore
from cdp_torchrec.data.manifest import find_damage, write_manifest
from cdp_torchrec.data.prepare.compact import compact
from cdp_torchrec.data.prepare.database import EngineLimits, open_database
from cdp_torchrec.data.prepare.history_files import code_behaviours, write_history
from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.prepare.staging_checks import load_rows
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from tests.conftest import MakeOnce
from tests.data.appended_log import DAY_MS, DAYS, fill, reading

PARTS = ("item", "timestamp", "action", "category", "cluster")


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def histories(store: BehaviourSource, users: int, categories: int, before: int) -> Iterator[Any]:
    """Everything that the store answers, user by user and category by category."""
    for user in range(users + 2):
        for category in range(-1, categories + 2):
            moments = np.array([before, before // 2, before // 3 * 2 + 1])
            owner = np.full(len(moments), user)
            if category < 0:
                behaviours, slices = store.recent(owner, moments)
            else:
                behaviours, slices = store.gated(owner, np.full(len(moments), category), moments)
            behaviours.check(slices, moments)
            yield columns(behaviours, slices.rows()), slices.lengths.tolist()
            rows = slices.last(3, skip=1).rows()
            yield columns(behaviours, rows)


def columns(behaviours: Behaviours, rows: np.ndarray) -> list[list[int] | None]:
    found = [getattr(behaviours, part) for part in PARTS]
    return [None if column is None else column[rows].tolist() for column in found]


def of_all(dataset: Path) -> list[Any]:
    schema = load_grown_schema(dataset)
    store = open_history(dataset, schema)
    sizes = (schema.entities["user"].num_ids, schema.entities["category"].num_ids)
    return list(histories(store, *sizes, before=5 * DAY_MS))


def test_a_store_of_segments_answers_as_one_that_was_compacted(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    dataset, schema = tmp_path / "data", load_grown_schema(made / "grown")
    periods = {"train_on": ("train", "test", *DAYS[:2]), "test_on": DAYS[2]}
    segmented = of_all(dataset)
    assert isinstance(open_history(dataset, schema), SegmentedHistory)
    digest = reading(dataset, **periods).training_digest
    assert compact(dataset) == 4
    assert isinstance(open_history(dataset, schema), HistoryStore)
    assert not (dataset / "history").exists()
    assert of_all(dataset) == segmented
    assert find_damage(dataset, active=False) == {}
    assert compact(dataset) == 1
    # A run that was begun before goes on.
    assert reading(dataset, **periods).training_digest == digest
    assert len(segments(dataset, schema.days)) == 1


def test_a_store_from_before_there_were_clusters_is_compacted_without(
    made: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "data"
    shutil.copytree(made / "grown", dataset)
    (dataset / "history" / "by_time" / "cluster.npy").unlink()
    write_manifest(dataset)
    before = of_all(dataset)
    assert compact(dataset) == 4
    assert of_all(dataset) == before
    assert find_damage(dataset, active=False) == {}
    assert not list(dataset.rglob("by_time/cluster.npy"))


def test_a_compacted_store_is_that_of_the_whole_log_at_once(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    compact(tmp_path / "data")
    schema = load_grown_schema(made / "grown")
    spec = DatasetSpec.of_dataset(schema)
    with open_database(tmp_path / "work", EngineLimits()) as connection:
        load_rows(connection, made / "all", spec)
        for entity in schema.entities:
            raw = stored_ids(made / "grown", schema, entity)
            table = pa.table({"code": np.arange(1, len(raw) + 1), "raw": raw})
            connection.register("_ids", table)
            connection.execute(f"CREATE TABLE vocabulary_{entity} AS FROM _ids")
        code_behaviours(connection, spec)
        num_ids = {name: entity.num_ids for name, entity in schema.entities.items()}
        write_history(connection, spec, tmp_path / "history", num_ids)
    (merged,) = segments(tmp_path / "data", schema.days)
    for path in (p for p in (tmp_path / "history").rglob("*") if p.is_file()):
        found = merged.root / "history" / path.relative_to(tmp_path / "history")
        assert np.array_equal(np.load(found), np.load(path)), path


def test_batches_of_segments_are_those_of_one_store(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "grown", tmp_path / "data")
    compact(tmp_path / "data")
    lookup = HistoryLookup(
        pool_segments=(1, 2), gated=True, recent=True, clustered=True, whole=True
    )
    found = []
    for dataset in (made / "grown", tmp_path / "data"):
        reader = reading(dataset, test_on=DAYS[2], history=HistoryConfig(count_ages=(1.0, 2.0)))
        layout = reader.layout(lookup, history_counts=True)
        order = reader.impressions("test")
        assembler = reader.assembler(layout, batch_size=order.num_impressions, seed=0)
        found.append(assembler.assemble(order.take(0, 0, order.num_impressions), epoch=None))
    segmented, merged = found
    for one, other in (
        (segmented.sparse, merged.sparse),
        (segmented.sequence, merged.sequence),
    ):
        assert one is not None and other is not None
        assert torch.equal(one.values(), other.values())
        assert torch.equal(one.lengths(), other.lengths())
    assert torch.equal(segmented.history_counts, merged.history_counts)
    assert segmented.history_counts.shape[1] == 8
    assert (segmented.history_counts.sum(dim=0) > 0).all()
