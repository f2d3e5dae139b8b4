"""Ids fall on rows by a hash of their text: the same everywhere, and collisions are counted."""

from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.config import DataConfig, VocabularyConfig
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.prepare.hash_figures import measure_hashes
from cdp_torchrec.data.prepare.inspect import describe_dataset
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.data.tables.embedding_table import Table, stored_table
from cdp_torchrec.data.tables.hashed_tables import describe_collisions
from cdp_torchrec.data.tables.id_hash import IdHash, digests, measure_collisions
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids, training_counts
from cdp_torchrec.serving.vocabulary import LARGEST_CODE, Vocabulary
from tests.conftest import MakeOnce
from tests.data.appended_log import fill

HASHED = VocabularyConfig(hash_bucket_size=7, hash_seed=3)


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("appended", fill)


def test_the_hash_is_xxh64_of_the_text() -> None:
    # Test vectors of the XXH64 specification.
    assert digests(["", "abc"], 0).tolist() == [0xEF46DB3751D8E999, 0x44BC2CF5AD770999]
    assert IdHash(10).buckets(["abc"]).tolist() == [0x44BC2CF5AD770999 % 10]
    assert IdHash(10**9, 1).bucket("abc") != IdHash(10**9, 0).bucket("abc")


def test_collisions_are_those_of_a_table_by_hand() -> None:
    found = measure_collisions(np.array([4, 1, 4, 0, 4]), np.array([5, 10, 1, 3, 1]))
    assert (found.ids, found.occurrences) == (3 / 5, 7 / 20)
    nothing = measure_collisions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert (nothing.ids, nothing.occurrences) == (0.0, 0.0)


@pytest.mark.parametrize("multiple", [0.5, 1, 4])
def test_as_many_ids_collide_as_if_rows_were_drawn(multiple: float) -> None:
    count = 20_000
    buckets = IdHash(int(multiple * count)).buckets(f"item_{i}" for i in range(count))
    share = measure_collisions(buckets, np.ones(count)).ids
    # Each of the others misses its row with probability 1 - 1 / rows. Of count draws that hardly
    # depend on each other, the share deviates by sqrt(p (1 - p) / count) < .004.
    assert share == pytest.approx(1 - np.exp(-1 / multiple), abs=0.02)


def hashed_table(dataset: Path, *, grown: bool) -> tuple[Table, list[str]]:
    schema = load_grown_schema(dataset) if grown else load_schema(dataset)
    ids = stored_ids(dataset, schema, "item").to_pylist()
    return stored_table(dataset, schema, "item", HASHED), ids


def test_a_row_depends_on_the_text_of_its_id_alone(made: Path) -> None:
    rows = {}
    for dataset, grown in (("grown", True), ("before", False), ("whole", False)):
        table, ids = hashed_table(made / dataset, grown=grown)
        assert table.num_embeddings == 8
        found = table.rows(np.arange(len(ids) + 1))
        assert found[0] == 0 and found[1:].min() >= 1 and found.max() <= 7
        for raw, row in zip(ids, found[1:].tolist(), strict=True):
            assert rows.setdefault(raw, row) == row


def test_serving_finds_the_row_of_an_id_that_training_never_saw(made: Path) -> None:
    table, ids = hashed_table(made / "before", grown=False)
    everything, all_ids = hashed_table(made / "grown", grown=True)
    new = [raw for raw in all_ids if raw not in ids]
    assert new
    id_hash = IdHash.of(HASHED)
    assert id_hash is not None
    codes = Vocabulary(ids, id_hash).codes([*new, *ids, None], field="item")
    assert codes.max() <= LARGEST_CODE and len(set(codes.tolist())) == len(codes)
    of_any_id = Table(**vars(table) | {"num_ids": LARGEST_CODE})
    expected = dict(
        zip(all_ids, everything.rows(np.arange(1, len(all_ids) + 1)).tolist(), strict=True)
    )
    assert of_any_id.rows(codes).tolist() == [*(expected[raw] for raw in [*new, *ids]), 0]


def test_an_own_row_is_one_on_which_no_other_id_falls() -> None:
    buckets = np.array([2, 0, 2, 1])
    table = Table("item", 1, 0, num_ids=4, hash_bucket_size=4, buckets=buckets)
    assert table.has_own_row(np.arange(5)).tolist() == [False, False, True, False, True]


def test_a_training_says_how_many_ids_collide(made: Path) -> None:
    dataset = made / "before"
    schema = load_schema(dataset)
    tables = {
        "item": hashed_table(dataset, grown=False)[0],
        "user": stored_table(dataset, schema, "user", VocabularyConfig()),
    }
    (line,) = describe_collisions(dataset, schema, tables)
    found = measure_collisions(tables["item"].buckets, training_counts(dataset, schema, "item"))
    assert line.startswith("data.vocabulary.item.hash_bucket_size = 7: of ")
    assert f" {found.ids:.1%} share a row" in line and f"{found.occurrences:.1%} of the" in line


def test_the_preparation_measures_collisions_of_large_vocabularies(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = load_schema(tiny_dataset)
    assert measure_hashes(tiny_dataset, schema.model_copy(update={"entities": {}})) == {}
    monkeypatch.setattr("cdp_torchrec.data.prepare.hash_figures._LEAST_IDS", 100)
    figures = measure_hashes(tiny_dataset, schema)
    num_ids = schema.entities["item"].num_ids
    figure = figures["collisions_of_ids"]["item x2"]
    assert figure.count == 2 * num_ids
    buckets = IdHash(2 * num_ids).buckets(stored_ids(tiny_dataset, schema, "item").to_pylist())
    assert figure.value == len([b for b in buckets if (buckets == b).sum() > 1]) / num_ids
    text, _ = describe_dataset(tiny_dataset)
    assert f"{figure.value:.1%}, " in text and "2 rows per id" in text


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("{hash_bucket_size=9, min_count=2}", r"and dropout; set min_count = 1 \(found 2\)"),
        ("{hash_bucket_size=9, managed_collision={zch_size=64}}", "only one of hash_bucket_size"),
        ("{hash_seed=9}", "hash_seed has no effect without hash_bucket_size"),
        ("{hash_bucket_size=0}", "hash_bucket_size = 0"),
    ],
)
def test_settings_that_contradict_a_hash_are_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(DataConfig, ["dir=x", f"vocabulary.item={setting}"])
