"""The user bootstrap: its weights, its replicates and the width of its intervals."""

from math import sqrt

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cdp_torchrec.metrics import ImpressionMetrics
from cdp_torchrec.metrics.bootstrap import mix, poisson_weights
from tests.metrics.sample import brute_force_groups, evaluate, make_log


def test_bootstrap_weights_are_poisson_and_independent() -> None:
    user = mix(np.arange(20_000, dtype=np.uint64))
    weights = poisson_weights(user, first=0, last=30, seed=5).astype(float)
    assert weights.mean() == pytest.approx(1.0, abs=0.005)
    assert weights.var() == pytest.approx(1.0, abs=0.01)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.003)
    assert (weights == 3).mean() == pytest.approx(np.exp(-1) / 6, abs=0.002)
    between_replicates = np.corrcoef(weights)[np.triu_indices(30, 1)]
    assert np.abs(between_replicates).max() < 5 / sqrt(20_000)
    other_seed = poisson_weights(user, first=0, last=30, seed=6)
    assert abs(np.corrcoef(weights.ravel(), other_seed.ravel())[0, 1]) < 5 / sqrt(600_000)


def test_bootstrap_weight_is_a_function_of_user_replicate_and_seed() -> None:
    user = mix(np.arange(1000, dtype=np.uint64))
    weights = poisson_weights(user, first=0, last=12, seed=5)
    assert (poisson_weights(user[::-1], first=0, last=12, seed=5) == weights[:, ::-1]).all()
    assert (poisson_weights(user[10:20], first=8, last=11, seed=5) == weights[8:11, 10:20]).all()


def test_replicate_is_the_exact_metric_under_the_user_weights() -> None:
    impressions = make_log()
    report = evaluate(impressions, num_bootstrap=6, seed=9)
    users, user = np.unique(impressions.user_id, return_inverse=True)
    weights = poisson_weights(mix(users.view(np.uint64)), first=0, last=6, seed=9).astype(float)
    by_user = brute_force_groups(impressions, impressions.user_id)
    user_of = dict(zip(impressions.request_id, user, strict=True))
    by_request = brute_force_groups(impressions, impressions.request_id)
    for replicate, weight in enumerate(weights):
        expected = {
            "auc": roc_auc_score(
                impressions.labels, impressions.probability, sample_weight=weight[user]
            ),
            "uauc": np.average(
                [value for _, _, value in by_user],
                weights=[weight[np.searchsorted(users, group)] for group, _, _ in by_user],
            ),
            "gauc": np.average(
                [value for _, _, value in by_request],
                weights=[weight[user_of[group]] * size for group, size, _ in by_request],
            ),
        }
        found = {name: report.replicates[name][replicate] for name in expected}
        assert found == pytest.approx(expected, abs=1e-12)


def test_bootstrap_error_of_auc_agrees_with_delong_for_independent_impressions() -> None:
    random = np.random.default_rng(4)
    labels = (random.random(3000) < 0.3).astype(np.float32)
    score = 1 / (1 + np.exp(-random.normal(labels, 1.0)))
    clicks, others = score[labels == 1], score[labels == 0]
    wins = clicks[:, None] > others[None, :]
    delong = wins.mean(1).var(ddof=1) / len(clicks) + wins.mean(0).var(ddof=1) / len(others)
    metrics = ImpressionMetrics()
    metrics.update(
        probability=torch.from_numpy(score).float(),
        labels=torch.from_numpy(labels),
        user_id=torch.arange(3000),
        request_id=torch.arange(3000),
    )
    report = metrics.compute(num_bootstrap=1000)
    assert report.replicates["auc"].std() == pytest.approx(sqrt(delong), rel=0.1)
    low, high = report.auc_interval
    assert high - low == pytest.approx(2 * 1.96 * sqrt(delong), rel=0.12)
    assert low < report.auc < high


def test_reports_of_one_seed_are_paired_and_of_two_seeds_are_not() -> None:
    impressions = make_log()
    first = evaluate(impressions, num_bootstrap=100).replicates["gauc"]
    nudge = np.random.default_rng(6).random(len(impressions.labels))
    impressions.probability = (impressions.probability * 0.98 + 0.02 * nudge).astype(np.float32)
    paired = evaluate(impressions, num_bootstrap=100).replicates["gauc"]
    unpaired = evaluate(impressions, num_bootstrap=100, seed=1).replicates["gauc"]
    assert np.corrcoef(first, paired)[0, 1] > 0.8
    assert abs(np.corrcoef(first, unpaired)[0, 1]) < 0.4
