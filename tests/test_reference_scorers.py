"""The untrained scorers rank by what their names say."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from cdp_torchrec.data.requests import ImpressionOrder, RequestFiles
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.reference_scorers import ReferenceScorers, evaluate_references


def flat(dataset: Path, name: str) -> np.ndarray:
    return pq.read_table(dataset / "test")[name].combine_chunks().flatten().to_numpy()


def test_scores_follow_position_last_touch_and_popularity(tiny_dataset: Path) -> None:
    schema = load_schema(tiny_dataset)
    files = RequestFiles(tiny_dataset, schema, "test", extra_columns=["click_probability"])
    impressions = ImpressionOrder(files, seed=None).take(0, 0, 80)
    scorers = ReferenceScorers(tiny_dataset, schema)
    position = scorers.score("position", impressions).reshape(10, 8)
    assert (np.diff(position, axis=1) < 0).all()
    touched = scorers.score("last_touched", impressions)
    is_last = impressions.candidate["history_rank"] == 0
    assert is_last.any()
    assert touched[is_last].min() > touched[~is_last].max()
    popularity = scorers.score("popularity", impressions)
    counts = pq.read_table(tiny_dataset / "vocabulary" / "item.parquet")["count"].to_numpy()
    codes = impressions.candidate["item_id"]
    assert np.corrcoef(popularity, counts[codes - 1])[0, 1] == pytest.approx(1.0)


def test_the_table_agrees_with_scikit_learn(tiny_dataset: Path, one_rank: None) -> None:
    table = evaluate_references(tiny_dataset)
    found = {line.split()[0]: float(line.split()[1]) for line in table.splitlines()[1:]}
    assert set(found) == {"popularity", "position", "last_touched", "bayes"}
    truth = flat(tiny_dataset, "click_probability").astype(np.float32)
    assert found["bayes"] == pytest.approx(
        roc_auc_score(flat(tiny_dataset, "label"), truth), abs=1e-4
    )
    assert found["bayes"] == pytest.approx(load_schema(tiny_dataset).bayes["auc"], abs=1e-4)
    assert found["bayes"] == max(found.values())
