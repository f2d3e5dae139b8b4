"""The untrained scorers rank by what their names say."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.request_files import Impressions, RequestFiles
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import Feature, load_schema
from cdp_torchrec.reference_scorers import ReferenceScorers, evaluate_references
from tests.data.staged_log import FEATURES, REQUEST_TYPES, SPEC, random_log, stage


def flat(dataset: Path, name: str) -> np.ndarray:
    return pq.read_table(dataset / "test")[name].combine_chunks().flatten().to_numpy()


@pytest.fixture
def impressions(tiny_dataset: Path, one_rank: None) -> Impressions:
    """All of the test split."""
    files = RequestFiles(
        tiny_dataset, load_schema(tiny_dataset), "test", extra_columns=["click_probability"]
    )
    return ImpressionOrder(files, seed=None).take(0, 0, files.num_impressions)


def test_popularity_follows_the_training_count(
    tiny_dataset: Path, impressions: Impressions
) -> None:
    popularity = ReferenceScorers(DataConfig(dir=tiny_dataset)).score("popularity", impressions)
    counts = pq.read_table(tiny_dataset / "vocabulary" / "item.parquet")["count"].to_numpy()
    codes = impressions.candidate["item_id"]
    assert np.corrcoef(popularity, counts[codes - 1])[0, 1] == pytest.approx(1.0)


def test_rates_are_those_of_the_training_split(
    tiny_dataset: Path, impressions: Impressions
) -> None:
    scorers = ReferenceScorers(DataConfig(dir=tiny_dataset))
    train = pq.read_table(tiny_dataset / "train")
    label = train["label"].combine_chunks().flatten().to_numpy()
    for scorer, feature in {
        "category_click_rate": "category_id",
        "position_click_rate": "position",
    }.items():
        codes = train[feature].combine_chunks().flatten().to_numpy()
        score = scorers.score(scorer, impressions)
        for code in np.unique(codes):
            found = score[impressions.candidate[feature] == code]
            chosen = label[codes == code]
            rate = (chosen.sum() + 10 * label.mean()) / (len(chosen) + 10)
            assert found == pytest.approx(rate), (scorer, code)


def test_category_share_is_that_of_the_behaviours_before_the_request(
    tiny_dataset: Path, impressions: Impressions
) -> None:
    scorers = ReferenceScorers(DataConfig(dir=tiny_dataset))
    score = scorers.score("category_share", impressions)
    store = scorers.reader.store
    assert isinstance(store, HistoryStore)
    offsets = np.load(tiny_dataset / "history" / "user_offsets.npy")
    for place in range(0, len(score), 97):
        request = impressions.request_index[place]
        user = impressions.request["user_id"][request]
        rows = slice(offsets[user], offsets[user + 1])
        past = store.by_time.timestamp[rows] < impressions.request["timestamp"][request]
        assert store.by_time.category is not None
        same = store.by_time.category[rows] == impressions.candidate["category_id"][place]
        assert score[place] == pytest.approx((same & past).sum() / max(past.sum(), 1))


def test_the_last_touched_item_comes_first_then_the_place_counts(
    tiny_dataset: Path, impressions: Impressions
) -> None:
    scorers = ReferenceScorers(DataConfig(dir=tiny_dataset))
    touched = scorers.score("last_touched", impressions)
    is_last = impressions.candidate["history_rank"] == 0
    assert is_last.any()
    assert touched[is_last].min() > touched[~is_last].max()
    place = scorers.score("position_click_rate", impressions)
    assert np.corrcoef(touched[~is_last], place[~is_last])[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("place", [None, "slot"])
def test_scorers_go_by_roles_whatever_the_names(
    tmp_path: Path, one_rank: None, place: str | None
) -> None:
    rows, behaviours = random_log(3)
    spec = SPEC
    if place:
        feature = Feature(name=place, role="context", level="candidate", kind="id", entity="slot")
        spec = replace(SPEC, features=(*FEATURES, feature))
        rows = [row | {place: [f"p{n}" for n in range(len(row["label"]))]} for row in rows]
    staging = stage(tmp_path / "staging", rows, behaviours)
    if place:
        types = REQUEST_TYPES.append(pa.field(place, pa.list_(pa.string())))
        pq.write_table(pa.Table.from_pylist(rows, types), staging / "requests" / "part-0.parquet")
    build_dataset(staging, tmp_path / "data", spec)
    scorers = ReferenceScorers(DataConfig(dir=tmp_path / "data"))
    names = ["popularity", "category_share", "category_click_rate"]
    assert scorers.names == [*names, *([f"{place}_click_rate"] if place else []), "last_touched"]
    test = scorers.reader.impressions("test")
    impressions = test.take(0, 0, test.num_impressions)
    touched = scorers.score("last_touched", impressions)
    rank = impressions.candidate["history_rank"]
    if not place:
        assert (np.diff(touched[rank >= 0][np.argsort(rank[rank >= 0])]) <= 0).all()
        assert touched[rank < 0].max() < touched[rank >= 0].min()


def test_the_table_agrees_with_scikit_learn(tiny_dataset: Path, one_rank: None) -> None:
    table = evaluate_references(tiny_dataset)
    found = {line.split()[0]: float(line.split()[1]) for line in table.splitlines()[1:-1]}
    assert set(found) == {
        "popularity",
        "category_share",
        "category_click_rate",
        "position_click_rate",
        "last_touched",
        "bayes",
        "ideal_no_history",
        "ideal",
    }
    truth = flat(tiny_dataset, "click_probability").astype(np.float32)
    assert found["bayes"] == pytest.approx(
        roc_auc_score(flat(tiny_dataset, "label"), truth), abs=1e-4
    )
    assert found["bayes"] == pytest.approx(load_schema(tiny_dataset).bayes["auc"], abs=1e-4)
    assert found["bayes"] == max(found.values())
    assert found["ideal_no_history"] < found["ideal"]
    assert re.fullmatch(r"ideal: standard error 0\.\d+ of GAUC .*", table.splitlines()[-1])
