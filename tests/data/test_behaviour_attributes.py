"""Attributes of behaviours reach the batch as the log has them, whatever the store's segments."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdp_torchrec.data.config import DataConfig, HistoryConfig, VocabularyConfig
from cdp_torchrec.data.days import load_grown_schema
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.segments import open_history
from cdp_torchrec.data.prepare.compact import compact
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import DatasetError, Schema, load_schema
from cdp_torchrec.data.tables.stored_vocabulary import stored_ids
from cdp_torchrec.model.behaviour_attributes import BehaviourAttributes
from cdp_torchrec.serving.encode_attributes import encode_attributes, raw_attributes
from cdp_torchrec.serving.inline_histories import EncodedHistory, InlineHistories
from cdp_torchrec.serving.parts import open_vocabularies
from cdp_torchrec.serving.request import RequestError
from tests.conftest import MakeOnce
from tests.data.appended_log import cut
from tests.data.attributed_log import (
    SPEC,
    attributed_log,
    fill_attributed,
    stage_attributed,
    write_behaviours,
)
from tests.data.staged_log import Rows, stage

LATEST = np.iinfo(np.int64).max


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> Path:
    """Do not write into it."""
    return make_once("attributed", fill_attributed)


def stored(dataset: Path, *, gated: bool = False) -> list[tuple[Any, ...]]:
    """All behaviours in raw values, user by user."""
    schema = load_grown_schema(dataset)
    store, vocabularies = open_history(dataset, schema), open_vocabularies(dataset, schema)
    users = vocabularies["user"].raw(np.arange(1, schema.entities["user"].num_ids + 1))
    categories = np.arange(1, schema.entities["category"].num_ids + 1) if gated else [0]
    rows = []
    for code, user in enumerate(users, start=1):
        for category in categories:
            who = (np.array([code]), np.array([category]), np.array([LATEST]))
            behaviours, slices = store.gated(*who) if gated else store.recent(who[0], who[2])
            place = slices.rows()
            raw: dict[str, Any] = raw_attributes(
                {n: c[place] for n, c in behaviours.attributes.items()},
                schema.history.attributes,
                vocabularies,
            )
            items = vocabularies["item"].raw(np.asarray(behaviours.item[place]))
            times = np.asarray(behaviours.timestamp[place]).tolist()
            lists = (items, times, raw["dwell_s"], map(tuple, raw["tags"]), raw["shop"])
            rows += [(user, *row) for row in zip(*lists, strict=True)]
    return rows


def as_text(rows: Any) -> list[str]:
    return sorted(map(repr, rows))


def logged() -> Rows:
    rows = attributed_log()[1]
    return [row for day in range(2) for row in cut(rows, day)]


def of_log(rows: Rows) -> list[tuple[Any, ...]]:
    return [
        (r["user_id"], r["item"], r["timestamp"], r["dwell_s"], tuple(r["tags"]), r["shop"])
        for r in rows
    ]


def test_the_store_has_the_attributes_of_the_log(made: Path) -> None:
    assert as_text(stored(made / "whole")) == as_text(of_log(logged()))
    with_category = [row for row in logged() if row["category"] is not None]
    assert as_text(stored(made / "whole", gated=True)) == as_text(of_log(with_category))


def test_appended_days_and_a_compacted_store_have_them_too(made: Path, tmp_path: Path) -> None:
    assert as_text(stored(made / "grown")) == as_text(of_log(logged()))
    shutil.copytree(made / "grown", tmp_path / "data")
    before = stored(tmp_path / "data"), stored(tmp_path / "data", gated=True)
    assert compact(tmp_path / "data") == 2
    assert (stored(tmp_path / "data"), stored(tmp_path / "data", gated=True)) == before


def test_numbers_are_standardised_by_training_and_test_data_change_nothing(tmp_path: Path) -> None:
    requests, behaviours = attributed_log()
    spec = replace(SPEC, test_from=600)

    def build(name: str, change: dict[str, Any], lists: dict[str, float]) -> Schema:
        changed = [row | change if row["timestamp"] >= 600 else row for row in behaviours]
        asked = [
            row | {"budget": 1e6, "price": [lists["price"]] * len(row["label"])}
            if lists and row["timestamp"] >= 600
            else row
            for row in requests
        ]
        folder = stage(tmp_path / name / "staging", asked, [])
        write_behaviours(folder, changed)
        return build_dataset(folder, tmp_path / name / "data", spec)

    schema = build("one", {}, {})
    other = build("other", {"dwell_s": 1e9}, {"price": -1e9})
    scale = schema.history.attributes[0]
    known = [r["dwell_s"] for r in behaviours if r["timestamp"] < 600 and r["dwell_s"] is not None]
    assert scale.mean == pytest.approx(np.mean(known), rel=1e-9)
    assert scale.std == pytest.approx(np.std(known), rel=1e-9)
    assert schema.fingerprint() == other.fingerprint()
    for path in (tmp_path / "one" / "data" / "train").iterdir():
        copy = tmp_path / "other" / "data" / "train" / path.name
        assert copy.read_bytes() == path.read_bytes()


def batch_of(dataset: Path, **settings: Any) -> tuple[Any, Any]:
    reader = DatasetReader(DataConfig(dir=dataset, **settings))
    layout = reader.layout(HistoryLookup(gated=True, recent=True), history_counts=False)
    order = reader.impressions("test")
    assembler = reader.assembler(layout, batch_size=order.num_impressions + 1, seed=0)
    return layout, assembler.assemble(order.take(0, 0, order.num_impressions), epoch=None)


def test_a_batch_has_the_attributes_of_each_behaviour(made: Path) -> None:
    dataset = made / "whole"
    _, batch = batch_of(dataset)
    schema = load_schema(dataset)
    scale = schema.history.attributes[0]
    users, items, tags = (
        [None, *stored_ids(dataset, schema, name).to_pylist()] for name in ("user", "item", "tag")
    )
    # Tags that training never saw share row 1, behind row 0 for nothing.
    seen = {tag for r in logged() if r["timestamp"] < SPEC.test_from for tag in r["tags"]}
    rows = {
        (
            r["user_id"],
            r["item"],
            number_of(r["dwell_s"], scale),
            tuple(tag if tag in seen else None for tag in r["tags"]),
        )
        for r in logged()
    }
    assert any(None in row[3] for row in rows)
    for slot in ("gated", "recent"):
        index, lookups = getattr(batch, slot), batch.sequence.to_dict()
        found = [lookups[f"{slot}_attribute_tags_{k}"].values().tolist() for k in range(3)]
        owner = batch.user_id[index.first_impression[index.owner]].tolist()
        assert len(index.item_id) == len(found[0]) == len(index.attributes) > 0
        for place, (user, item) in enumerate(zip(owner, index.item_id.tolist(), strict=True)):
            own = tuple(tags[column[place] - 1] for column in found if column[place])
            number, *filled = index.attributes[place].tolist()
            assert filled == [1.0] * len(own) + [0.0] * (3 - len(own))
            assert (users[user], items[item], number, own) in rows


def number_of(raw: float | None, scale: Any) -> float:
    return 0.0 if raw is None else float(np.float32((raw - scale.mean) / scale.std))


def test_an_attribute_that_is_left_out_is_not_read(made: Path) -> None:
    layout, batch = batch_of(made / "whole", exclude_features=("history.tags", "history.dwell_s"))
    assert [a.name for a in layout.attributes] == ["shop"]
    assert "tag" not in layout.tables and batch.recent.attributes is None
    assert "recent_attribute_shop" in batch.sequence.keys()  # noqa: SIM118 (no mapping)


def test_a_vector_of_an_attribute_is_the_mean_of_its_ids(made: Path) -> None:
    layout, _ = batch_of(made / "whole")
    module = BehaviourAttributes(layout, embedding_dim=2, init_std=0.1)
    assert module.out_features == 6 and module.numbers is not None
    tags = [torch.tensor([[1.0, 2.0], [7.0, 7.0]]) * k for k in (1, 3, 100)]
    shop = torch.tensor([[5.0, 6.0], [0.0, 1.0]])
    embeddings = {f"recent_attribute_tags_{k}": tag for k, tag in enumerate(tags)}
    embeddings["recent_attribute_shop"] = shop
    values = torch.tensor([[0.5, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = module(embeddings, "recent", values)
    assert torch.equal(found[:, :2], values[:, :1] * module.numbers)
    assert found[:, 2:4].tolist() == [[2.0, 4.0], [0.0, 0.0]]
    assert torch.equal(found[:, 4:], shop)
    found.sum().backward()
    assert module.numbers.grad is not None and module.numbers.grad.abs().sum() > 0


def test_the_part_of_the_day_is_a_vector_behind_the_others(made: Path) -> None:
    layout, batch = batch_of(made / "whole", history=HistoryConfig(dayparts=4))
    module = BehaviourAttributes(layout, embedding_dim=2, init_std=0.1)
    assert module.out_features == 8 and module.dayparts is not None
    values = batch.recent.attributes
    assert values.shape[1] == layout.num_behaviour_values == 8
    count = len(values)
    names = [*(f"tags_{k}" for k in range(3)), "shop"]
    embeddings = {f"recent_attribute_{name}": torch.zeros(count, 2) for name in names}
    part = values[:, 4:].argmax(dim=1)
    assert len(part.unique()) > 1
    assert torch.equal(module(embeddings, "recent", values)[:, 6:], module.dayparts[part])


def test_behaviours_that_a_request_brings_are_those_of_the_store(made: Path) -> None:
    dataset = made / "whole"
    schema = load_schema(dataset)
    store, vocabularies = open_history(dataset, schema), open_vocabularies(dataset, schema)
    for user in range(1, schema.entities["user"].num_ids + 1):
        behaviours, slices = store.recent(np.array([user]), np.array([LATEST]))
        rows = np.random.default_rng(user).permutation(slices.rows())
        raw = raw_attributes(
            {n: c[rows] for n, c in behaviours.attributes.items()},
            schema.history.attributes,
            vocabularies,
        )
        encoded = encode_attributes(
            raw, schema.history.attributes, vocabularies, length=len(rows), at_most=1000
        )
        assert behaviours.category is not None and behaviours.action is not None
        history = EncodedHistory(
            behaviours.item[rows],
            behaviours.timestamp[rows],
            category=behaviours.category[rows],
            action=behaviours.action[rows],
            attributes=encoded,
        )
        brought = InlineHistories([history], clustered=False)
        own, own_slices = brought.recent(np.array([0]), np.array([LATEST]))
        for name, column in behaviours.attributes.items():
            expected = column[slices.rows()]
            assert np.array_equal(
                own.attributes[name][own_slices.rows()], expected, equal_nan=expected.ndim == 1
            )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"colour": [1]}, r"history\.colour: no such attribute; allowed: \['dwell_s', 'tags'"),
        ({"dwell_s": [1.0, 2.0]}, r"history\.dwell_s: 2 values for 1 behaviours"),
        ({"dwell_s": ["long"]}, r"history\.dwell_s: expected a number, found str"),
        ({"tags": ["red"]}, r"history\.tags: expected a list, found str"),
        ({"tags": [["a", "b", "c", "d"]]}, r"history\.tags: 4 values, at most 3 are allowed"),
        ({"shop": [1.5]}, r"history\.shop: ids are strings or integers, found float"),
    ],
)
def test_a_bad_attribute_of_a_request_is_one_message(
    made: Path, given: dict[str, Any], said: str
) -> None:
    schema = load_schema(made / "whole")
    vocabularies = open_vocabularies(made / "whole", schema)
    attributes = schema.history.attributes
    with pytest.raises(RequestError, match=said):
        encode_attributes(given, attributes, vocabularies, length=1, at_most=9)
    nothing = encode_attributes({}, attributes, vocabularies, length=1, at_most=9)
    assert np.isnan(nothing["dwell_s"]).all() and not nothing["tags"].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tags": list("abcd")}, "'tags' holds more ids than the 3 of its max_ids.*4"),
        ({"dwell_s": float("inf")}, "'dwell_s' holds a number beyond"),
    ],
)
def test_a_bad_attribute_of_a_log_is_one_message(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    staging = stage_attributed(tmp_path / "staging", range(1), **change)
    with pytest.raises(DatasetError, match=said):
        build_dataset(staging, tmp_path / "data", SPEC)


def test_the_digest_says_what_attributes_mean(made: Path) -> None:
    schema = load_schema(made / "whole")
    assert (
        schema.digest().features["history.tags"] == "ids of each behaviour, ids of tag, at most 3"
    )
    assert "history.tags" not in schema.without(["history.tags"]).digest().features
    with pytest.raises(KeyError, match=r"has no feature 'history\.colour'; .*history\.shop"):
        schema.without(["history.colour"])


def test_an_id_of_an_attribute_has_its_row_by_the_rules_of_its_entity(made: Path) -> None:
    layout, _ = batch_of(made / "whole", vocabulary={"tag": VocabularyConfig(hash_bucket_size=5)})
    assert layout.tables["tag"].num_embeddings == 6
