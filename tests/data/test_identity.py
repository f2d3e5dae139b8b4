"""Two datasets are the same to a model if ids have the same codes and features mean the same."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.identity import mismatch
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.schema import DatasetError, Schema, load_schema
from cdp_torchrec.data.tables.vocabulary_digest import vocabulary_digest
from tests.data.staged_log import SPEC, behaviour, request, stage
from tests.data.test_schema import make_schema


def digest_of(path: Path, raw: list[str], **writing: Any) -> str:
    pq.write_table(pa.table({"raw": pa.array(raw, pa.string())}), path, **writing)
    return vocabulary_digest(path)


def test_a_vocabulary_digest_is_of_ids_and_codes_not_of_the_file(tmp_path: Path) -> None:
    raw = [f"item {number}" for number in range(1000)]
    plain = digest_of(tmp_path / "a.parquet", raw)
    assert plain == digest_of(
        tmp_path / "b.parquet", raw, row_group_size=7, compression="zstd", use_dictionary=False
    )
    assert plain != digest_of(tmp_path / "c.parquet", [raw[1], raw[0], *raw[2:]])
    assert plain != digest_of(tmp_path / "c.parquet", raw[:-1])
    # Where one id ends and the next begins counts.
    glued, split = digest_of(tmp_path / "d.parquet", ["ab", "c"]), ["a", "bc"]
    assert glued != digest_of(tmp_path / "e.parquet", split)
    assert len({digest_of(tmp_path / "f.parquet", [""] * count) for count in range(4)}) == 4


def prepared(folder: Path, *, test_from: int) -> Schema:
    """A log whose most frequent item is another one if more of it is training."""
    requests = [
        request(n, timestamp=100 + n, item_id=["a", "b"] if n < 4 else ["b", "c"])
        for n in range(10)
    ]
    staging = stage(folder / "staging", requests, [behaviour()])
    return build_dataset(staging, folder / "dataset", replace(SPEC, test_from=test_from))


def differences(one: Schema, other: Schema) -> list[str]:
    return one.digest().differences(other.digest(), here="the run", there="the dataset")


def test_a_split_at_another_time_is_another_dataset_only_if_codes_change(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", test_from=102)
    same_codes = prepared(tmp_path / "same", test_from=103)
    other_codes = prepared(tmp_path / "other", test_from=109)
    assert first.splits != same_codes.splits
    assert first.entities["item"].num_ids == other_codes.entities["item"].num_ids
    assert not differences(first, same_codes)
    assert differences(first, other_codes) == ["vocabulary item: 3 ids in both, other codes"]


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (
            {"mean": 1.5},
            "feature price: .*mean 1.0, std 2.0 in the run, .*mean 1.5, std",
        ),
        ({"role": "context"}, "feature price: .*role item, .* in the run, .*role context"),
        ({"name": "cost"}, "feature price: only in the run"),
    ],
)
def test_what_a_feature_is_belongs_to_the_identity(update: dict[str, Any], said: str) -> None:
    schema = make_schema()
    *others, price = schema.features
    other = make_schema(features=(*others, price.model_copy(update=update)))
    assert any(re.search(said, line) for line in differences(schema, other))


def test_vocabularies_of_excluded_features_do_not_count() -> None:
    schema = make_schema()
    hour = schema.entities["hour"].model_copy(update={"num_ids": 24})
    other = make_schema(entities=schema.entities | {"hour": hour})
    assert differences(schema, other) == ["vocabulary hour: 5 ids in the run, 24 in the dataset"]
    assert not differences(schema.without(["hour"]), other.without(["hour"]))
    assert schema.digest() != schema.without(["hour"]).digest()
    assert differences(schema, schema.without(["hour"])) == [
        "vocabulary hour: only in the run",
        "feature hour: only in the run",
    ]


def test_the_order_of_the_inputs_and_the_parts_of_the_history_count() -> None:
    schema = make_schema()
    turned = make_schema(features=schema.features[::-1])
    assert differences(schema, turned) == [
        "features stand in another order: item_id, category_id, hour, price in the run, "
        "price, hour, category_id, item_id in the dataset"
    ]
    ungated = make_schema(history=schema.history.model_copy(update={"category_entity": None}))
    assert differences(schema, ungated) == ["history category: only in the run"]


def test_names_paths_counts_and_spans_do_not_count() -> None:
    schema = make_schema()
    history = schema.history.model_copy(update={"num_behaviours": 99, "num_users": 7})
    other = make_schema(name="other", source="elsewhere", history=history, bayes={"auc": 0.9})
    assert other.fingerprint() == schema.fingerprint()


def test_the_message_names_both_and_says_what_to_do(tmp_path: Path) -> None:
    digest = make_schema().digest()
    other = make_schema(features=make_schema().features[:-1]).digest()
    assert mismatch(digest, digest, trained="run", dataset=tmp_path, advice="") is None
    said = mismatch(digest, other, trained="runs/a", dataset=tmp_path, advice="train again")
    assert said is not None
    assert said.startswith(f"runs/a was trained on another dataset than {tmp_path} (digest ")
    assert said.endswith("feature price: only in the model\n  train again")


def test_a_schema_that_was_edited_is_refused(tmp_path: Path) -> None:
    make_schema().save(tmp_path)
    path = tmp_path / "schema.toml"
    path.write_text(path.read_text().replace("mean = 1.0", "mean = 9.0"))
    with pytest.raises(DatasetError, match="changed after the preparation: dataset_digest = "):
        load_schema(tmp_path)
