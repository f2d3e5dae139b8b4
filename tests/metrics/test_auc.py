"""The AUC of arrays, whole and per group, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cdp_torchrec.metrics import auc, grouped_auc
from tests.metrics.sample import brute_force_groups, make_log


@pytest.mark.parametrize("scores", ["continuous", "tied", "constant", "logits", "float64"])
@pytest.mark.parametrize("weighting", ["none", "real", "with zeros"])
def test_auc_equals_scikit_learn(scores: str, weighting: str) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 3000)
    score = {
        "continuous": random.random(3000).astype(np.float32),
        "tied": random.integers(0, 4, 3000).astype(np.float32) / 4,
        "constant": np.full(3000, 0.25, np.float32),
        "logits": (random.normal(size=3000) * 3 + labels).astype(np.float32).round(1),
        "float64": 0.5 + random.integers(-9, 9, 3000) * 1e-12,
    }[scores]
    weights = {
        "none": None,
        "real": random.random(3000),
        "with zeros": random.poisson(1.0, 3000),
    }[weighting]
    expected = roc_auc_score(labels, score, sample_weight=weights)
    assert auc(score, labels, weights) == pytest.approx(expected, abs=1e-12)


def test_auc_of_tensors_treats_the_two_zeros_as_a_tie() -> None:
    assert auc(torch.tensor([0.0, -0.0]), torch.tensor([1, 0])) == 0.5


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_auc_without_both_labels_is_undefined(labels: list[int]) -> None:
    assert np.isnan(auc(np.full(len(labels), 0.5), np.array(labels)))


@pytest.mark.parametrize(
    ("score", "labels", "weights", "message"),
    [
        ([0.1, float("nan")], [0, 1], None, "1 of 2 values are NaN"),
        ([0.1, 0.2], [0, 2], None, "1 of 2 values are neither 0 nor 1"),
        ([0.1, 0.2], [0, 1, 1], None, r"shapes \(2,\) and \(3,\)"),
        ([0.1, 0.2], [0, 1], [1.0, -1.0], "minimum -1.0"),
    ],
)
def test_auc_names_bad_input(
    score: list[float], labels: list[int], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        auc(score, labels, weights)


def test_grouped_auc_equals_a_loop_over_groups() -> None:
    impressions = make_log()
    result = grouped_auc(impressions.probability, impressions.labels, impressions.request_id)
    expected = brute_force_groups(impressions, impressions.request_id)
    kept = ~np.isnan(result.auc)
    assert 0 < kept.sum() < len(kept)
    assert result.group[kept].tolist() == [group for group, _, _ in expected]
    assert result.num_impressions[kept].tolist() == [size for _, size, _ in expected]
    assert result.auc[kept] == pytest.approx([value for _, _, value in expected], abs=1e-12)
    assert result.mean == pytest.approx(np.mean([value for _, _, value in expected]))
    sizes = [size for _, size, _ in expected]
    weighted = np.average([value for _, _, value in expected], weights=sizes)
    assert result.weighted_mean == pytest.approx(weighted) != pytest.approx(result.mean)
