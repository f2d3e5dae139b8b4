"""Intervals agree with closed forms and with a bootstrap written out."""

import itertools
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cdp_torchrec.compare.statistics import Measured, paired_difference, seed_averages
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport


def measured(values: dict[int, float], replicates: dict[int, np.ndarray]) -> Measured:
    return Measured(values, replicates)


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    values = [0.7, 0.72, 0.69, 0.75]
    row = measured(dict(enumerate(values)), {})
    assert row.mean == pytest.approx(statistics.mean(values))
    assert row.deviation == pytest.approx(statistics.stdev(values))
    assert np.isnan(measured({0: 0.7}, {}).deviation)


def test_without_seed_noise_only_the_users_are_drawn() -> None:
    users = np.random.default_rng(1).normal(size=40)
    draws = seed_averages(np.stack([users, users, users]))
    assert np.allclose(np.sort(draws), np.sort(np.tile(users, 20)))


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seed_noise_gives_the_unbiased_variance_of_the_mean(num_seeds: int) -> None:
    seeds = np.random.default_rng(2).normal(size=num_seeds)
    draws = seed_averages(np.repeat(seeds[:, None], 2000, axis=1))
    assert draws.var() == pytest.approx(statistics.variance(seeds) / num_seeds, rel=0.03)
    possible = [np.mean(picks) for picks in itertools.product(seeds, repeat=max(num_seeds - 1, 1))]
    assert draws.var() == pytest.approx(np.var(possible), rel=0.03)
    assert draws.min() == pytest.approx(min(possible))
    assert draws.max() == pytest.approx(max(possible))


def test_seed_and_user_variances_add_up() -> None:
    generator = np.random.default_rng(3)
    users, seeds = generator.normal(size=4000), generator.normal(size=5)
    draws = seed_averages(users[None, :] + seeds[:, None])
    expected = users.var() + statistics.variance(seeds) / 5
    assert draws.var() == pytest.approx(expected, rel=0.03)


USERS, PER_USER = 120, 12


def report(scores: np.ndarray, labels: np.ndarray) -> MetricReport:
    user = torch.arange(USERS).repeat_interleave(PER_USER)
    metrics = ImpressionMetrics()
    metrics.update(
        probability=torch.from_numpy(scores.reshape(-1)).float(),
        labels=torch.from_numpy(labels.reshape(-1)).float(),
        user_id=user,
        request_id=user,
        weights=torch.ones(len(user)),
        strata={},
    )
    return metrics.compute(num_bootstrap=4000)


def test_the_paired_interval_agrees_with_a_bootstrap_of_users_written_out() -> None:
    generator = np.random.default_rng(4)
    truth = generator.random((USERS, PER_USER))
    labels = (generator.random((USERS, PER_USER)) < truth).astype(int)
    labels[:, 0], labels[:, 1] = 0, 1
    scores = [0.5 * truth + 0.5 * generator.random(truth.shape) for _ in range(2)]
    reports = [report(score, labels) for score in scores]
    rows = [measured({0: r.uauc}, {0: r.replicates["uauc"]}) for r in reports]
    found = paired_difference(*rows, confidence=0.95)
    assert found is not None
    by_user = [
        np.array([roc_auc_score(*pair) for pair in zip(labels, score, strict=True)])
        for score in scores
    ]
    difference = by_user[0] - by_user[1]
    assert found.mean == pytest.approx(difference.mean(), abs=1e-6)
    weights = np.random.default_rng(5).poisson(1.0, (20000, USERS))
    expected = np.quantile(weights @ difference / weights.sum(axis=1), [0.025, 0.975])
    width = expected[1] - expected[0]
    assert found.low == pytest.approx(expected[0], abs=0.06 * width)
    assert found.high == pytest.approx(expected[1], abs=0.06 * width)


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    flat = np.zeros(30)
    row = measured({0: 0.9, 1: 0.5, 2: 0.1}, {0: flat + 0.9, 1: flat + 0.5, 2: flat + 0.1})
    other = measured({1: 0.4, 2: 0.3, 7: 0.0}, {1: flat + 0.4, 2: flat + 0.3, 7: flat})
    found = paired_difference(row, other, confidence=0.95)
    assert found is not None
    assert found.num_seeds == 2
    assert found.mean == pytest.approx(-0.05)
    assert (found.low, found.high) == pytest.approx((-0.2, 0.1))
    assert not found.is_significant
    assert paired_difference(row, measured({9: 0.1}, {9: flat}), confidence=0.95) is None


def test_a_difference_is_significant_if_its_interval_excludes_zero() -> None:
    spread = np.random.default_rng(6).normal(0.0, 0.1, 1000)
    zero = measured({0: 0.0}, {0: np.zeros(1000)})
    for mean, expected in ((0.3, True), (-0.3, True), (0.05, False)):
        found = paired_difference(measured({0: mean}, {0: mean + spread}), zero, confidence=0.95)
        assert found is not None
        assert found.is_significant is expected
    again = paired_difference(measured({0: 0.05}, {0: 0.05 + spread}), zero, confidence=0.95)
    assert again == found
