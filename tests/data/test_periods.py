"""Each period of a log with appended days is read with what was known at its time."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.days import load_days, load_grown_schema, read_schema
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.identity import mismatch
from cdp_torchrec.data.layout import declare_layout
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.tables.embedding_table import Table, stored_table
from cdp_torchrec.data.tables.stored_vocabulary import training_counts
from tests.conftest import MakeOnce
from tests.data.appended_log import DAYS, fill, reading


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def test_each_period_is_read_with_the_ids_and_counts_of_its_time(made: Path) -> None:
    dataset = made / "grown"
    days = load_days(dataset, load_schema(dataset))
    by_default = read_schema(DataConfig(dir=dataset))
    assert by_default == load_schema(dataset)
    schema = read_schema(DataConfig(dir=dataset, train_on=("test", DAYS[0]), test_on=DAYS[1]))
    assert (schema.trained_days, len(schema.days)) == (1, 2)
    assert schema.entities == days[1].entities
    assert schema.splits["test"] == days[1].requests
    both = by_default.splits["test"].requests + days[0].requests.requests
    assert schema.splits["train"].requests == both
    reader = reading(dataset, train_on=("test", DAYS[0]), test_on=DAYS[1])
    train, test = reader.impressions("train"), reader.impressions("test")
    assert train.num_impressions == schema.splits["train"].impressions
    last = train.take(0, 0, train.num_impressions).request["timestamp"].max()
    first = test.take(0, 0, test.num_impressions).request["timestamp"].min()
    assert last < days[1].requests.first_timestamp == first


@pytest.mark.parametrize("min_count", [1, 3, 20, 24, 30])
def test_rows_of_a_table_stay_and_later_ids_get_the_next_ones(made: Path, min_count: int) -> None:
    dataset, config = made / "grown", VocabularyConfig(min_count=min_count, num_oov_rows=2)
    trained = [("train",), ("test", DAYS[0]), ("test", *DAYS[:2])]
    tests = ["test", DAYS[1], DAYS[2]]
    tables = []
    for train_on, test_on in zip(trained, tests, strict=True):
        schema = read_schema(DataConfig(dir=dataset, train_on=train_on, test_on=test_on))
        tables.append(stored_table(dataset, schema, "item", config))
        table, counts = tables[-1], training_counts(dataset, schema, "item")
        codes = np.arange(1, schema.entities["item"].num_ids + 1)
        rows = table.rows(codes)
        # Who is frequent has a row of its own, nobody else has, and all rows are used.
        assert (table.has_own_row(codes) == (counts >= min_count)).all()
        own = rows[counts >= min_count]
        assert sorted(own) == list(range(3, table.num_embeddings))
        assert set(rows[counts < min_count]) <= {1, 2}
        assert table.rows(np.array([0])) == 0
    for before, after in pairwise(tables):
        codes = np.arange(1, before.num_ids + 1)
        own = before.has_own_row(codes)
        assert (before.rows(codes)[own] == after.rows(codes)[own]).all()
    if min_count == 3:
        assert tables[0].num_embeddings < tables[1].num_embeddings


@pytest.mark.parametrize("test_on", DAYS)
def test_what_is_measured_later_changes_neither_draws_nor_networks(
    made: Path, test_on: str
) -> None:
    """Fails where users or domains of days that were not trained on count: strangers would be other
    ones, and a network for each domain would fit no checkpoint of the day before."""
    base = load_schema(made / "grown")
    schema = reading(made / "grown", test_on=test_on).schema
    # As if the measured day had brought many, in a log whose scene is the topic.
    history = schema.history.model_copy(update={"num_users": 999})
    more = schema.entities["category"].model_copy(update={"num_ids": 999})
    topic = schema.feature("topic").model_copy(update={"role": "scene"})
    schema = schema.model_copy(
        update={
            "history": history,
            "entities": schema.entities | {"category": more},
            "features": tuple(topic if f.name == "topic" else f for f in schema.features),
        }
    )
    layout = declare_layout(
        schema,
        lambda entity: Table(entity, num_oov_rows=1, num_kept=0, num_ids=999),
        history=HistoryLookup(recent=True, stranger=True, domain=True),
        counts=None,
    )
    assert layout.num_users == base.entities["user"].num_ids
    assert layout.num_domains == base.entities["category"].num_ids + 1


def test_what_knew_less_of_a_vocabulary_reads_it_and_another_does_not(made: Path) -> None:
    base, grown = load_schema(made / "before"), load_grown_schema(made / "grown")
    assert base.fingerprint() != grown.fingerprint()
    assert base.digest().vocabularies["item"] != grown.digest().vocabularies["item"]

    def differs(model: Any) -> str | None:
        return mismatch(
            model.digest(), grown.digest(), trained="run", dataset=made / "grown", advice="no"
        )

    assert differs(base) is None
    assert differs(grown) is None
    item = base.entities["item"]
    for changed in ({"digest": "another"}, {"num_ids": item.num_ids - 1}):
        entities = base.entities | {"item": item.model_copy(update=changed)}
        said = differs(base.model_copy(update={"entities": entities}))
        assert said is not None and "vocabulary item" in said
    assert "stages" not in grown.digest().model_dump()
    older = mismatch(
        grown.digest(), base.digest(), trained="run", dataset=made / "before", advice="no"
    )
    assert older is not None and "if the dataset lacks days, append them" in older


def test_periods_are_in_the_order_of_time_and_exist(made: Path) -> None:
    with pytest.raises(ConfigError, match="each period must be later"):
        load_config(DataConfig, ["dir=x", "train_on=['test']"])
    with pytest.raises(ConfigError, match="'yesterday' is no period"):
        load_config(DataConfig, ["dir=x", "test_on=yesterday"])
    with pytest.raises(ConfigError, match="has no period '1970-02-01'; it has train, test, 1970"):
        reading(made / "grown", test_on="1970-02-01")
