"""Intervals and tests agree with closed forms, a bootstrap written out, and simulations."""

import math
import statistics

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from cdp_torchrec.compare.statistics import Measured, Noise, common_noise, difference, holm
from cdp_torchrec.metrics import ImpressionMetrics, MetricReport

WORLD = "log"
K = 2000


def measured(values: dict[int, float], replicates: dict[int, np.ndarray]) -> Measured:
    """Of one dataset."""
    return Measured({WORLD: values}, {WORLD: replicates})


def of_seeds(values: list[float], users: np.ndarray | None = None) -> Measured:
    """A row whose seeds differ, on the same draws of users."""
    draws = np.zeros(K) if users is None else users
    by_seed = dict(enumerate(values))
    return measured(by_seed, {seed: value + draws for seed, value in by_seed.items()})


def of_worlds(values: list[list[float]]) -> Measured:
    by_world = {str(world): dict(enumerate(seeds)) for world, seeds in enumerate(values)}
    replicates = {
        w: {s: np.zeros(3) + v for s, v in seeds.items()} for w, seeds in by_world.items()
    }
    return Measured(by_world, replicates)


ZERO = of_seeds([0.0] * 5)


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    values = [0.7, 0.72, 0.69, 0.75]
    row = of_seeds(values)
    assert row.mean == pytest.approx(statistics.mean(values))
    assert row.deviation == pytest.approx(statistics.stdev(values))
    assert np.isnan(of_seeds([0.7]).deviation)
    worlds = of_worlds([[0.7, 0.8], [0.3, 0.3, 0.3, 0.3]])
    assert worlds.mean == pytest.approx((0.75 + 0.3) / 2)
    assert worlds.deviation == pytest.approx(math.sqrt(0.005 / 2))


def test_seed_noise_alone_gives_the_paired_t_test() -> None:
    row, other = [0.71, 0.74, 0.72, 0.79, 0.73], [0.70, 0.71, 0.72, 0.74, 0.72]
    found = difference(of_seeds(row), of_seeds(other), noise=None, confidence=0.95)
    expected = stats.ttest_rel(row, other)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_seed_leaves_the_noise_of_the_users() -> None:
    users = np.random.default_rng(1).normal(0, 0.01, K)
    found = difference(of_seeds([0.02], users), ZERO, noise=None, confidence=0.95)
    assert found is not None
    width = stats.t.ppf(0.975, K - 1) * users.std(ddof=1)
    assert (found.low, found.high) == pytest.approx((0.02 - width, 0.02 + width))
    # Which says nothing of another seed: neither does a p-value, however far users are from zero.
    assert math.isnan(found.p_value) and not found.is_significant
    noise = Noise("seeds", variance=2 * 0.03**2, weight=math.inf, degrees=4)
    with_others = difference(of_seeds([0.02], users), ZERO, noise=noise, confidence=0.95)
    assert with_others is not None
    assert with_others.p_value > 0.05
    assert with_others.high - with_others.low > 4 * width


def test_seed_and_user_variances_add_up_with_degrees_after_satterthwaite() -> None:
    users = np.random.default_rng(3).normal(0, 0.01, K)
    values = [0.01, 0.03, 0.02, 0.06, 0.03]
    found = difference(of_seeds(values, users), ZERO, noise=None, confidence=0.95)
    of_users, of_mean = users.var(ddof=1), statistics.variance(values) / 5
    variance = of_users + of_mean
    degrees = variance**2 / (of_users**2 / (K - 1) + of_mean**2 / 4)
    assert found is not None
    width = stats.t.ppf(0.975, degrees) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((0.03 - width, 0.03 + width))
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.03 / math.sqrt(variance), degrees))


def test_the_common_noise_of_two_rows_is_that_of_their_paired_t_test() -> None:
    table = np.random.default_rng(4).normal(size=(2, 3))
    table += np.arange(2)[:, None] + 10 * np.arange(3)  # rows and seeds move all alike
    row, other = (of_seeds(list(values)) for values in table)
    noise = common_noise([row, other])
    assert noise is not None
    assert (noise.weight, noise.degrees) == (math.inf, 2)
    shared, alone = (
        difference(row, other, noise=given, confidence=0.95) for given in (noise, None)
    )
    assert shared is not None and alone is not None
    assert shared.p_value == pytest.approx(alone.p_value)
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low)
    assert common_noise([of_seeds([0.1, 0.2])]) is None
    assert common_noise([of_seeds([0.1]), of_seeds([0.2])]) is None


def test_a_row_that_has_begun_leaves_the_noise_to_the_finished_ones() -> None:
    random = np.random.default_rng(9)
    table = random.normal(size=(4, 8))
    finished = [of_worlds([[value] for value in row]) for row in table]
    begun = of_worlds([[5.0], [-5.0]])
    of_one_world = of_worlds([[0.3]])
    assert common_noise([begun, *finished, of_one_world]) == common_noise(finished)
    seeds = [of_seeds(list(row), np.zeros(1)) for row in table]
    begun = of_seeds([5.0, -5.0], np.zeros(1))
    assert common_noise([begun, *seeds]) == common_noise(seeds)
    undefined = of_seeds([math.nan] + [0.5] * 7, np.zeros(1))
    assert common_noise([undefined, *seeds]) == common_noise(seeds)
    assert common_noise([undefined, undefined]) is None


@pytest.mark.parametrize("weight", [3.0, 12.0, math.inf])
def test_the_common_noise_finds_how_variances_of_rows_are_distributed(weight: float) -> None:
    """Rows whose variances are .04 d_0 / chi^2(d_0): Smyth's model, with d_0 and v_0 known."""
    random = np.random.default_rng(7)
    rows = 4000
    equal = math.isinf(weight)
    variances = 0.04 * (np.ones(rows) if equal else weight / random.chisquare(weight, rows))
    table = random.normal(size=(rows, 5)) * np.sqrt(variances)[:, None] + random.normal(size=5)
    noise = common_noise([of_seeds(list(row), np.zeros(1)) for row in table])
    assert noise is not None
    assert noise.variance == pytest.approx(0.08, rel=0.05)
    assert noise.degrees == 3999 * 4
    assert noise.weight > 100 if equal else noise.weight == pytest.approx(weight, rel=0.1)


def test_a_difference_has_the_larger_of_its_own_and_the_moderated_variance() -> None:
    row = of_seeds([0.01, 0.02, 0.03])  # s^2 = 1e-4, two degrees of freedom
    for variance, weight, expected, degrees in (
        (1e-3, math.inf, 1e-3, 8),
        (1e-3, 2.0, (1e-3 + 1e-4) / 2, 4),
        (1e-3, 20.0, (20e-3 + 2e-4) / 22, 8),
        (1e-6, 2.0, 1e-4, 2),
        (1e-6, math.inf, 1e-4, 2),
    ):
        noise = Noise("seeds", variance, weight, degrees=8)
        found = difference(row, ZERO, noise=noise, confidence=0.95)
        assert found is not None
        width = stats.t.ppf(0.975, degrees) * math.sqrt(expected / 3)
        assert found.high - found.mean == pytest.approx(width)


def test_rows_that_are_all_alike_have_no_noise() -> None:
    noise = common_noise([of_seeds([0.1, 0.3, 0.2])] * 4)
    assert noise is not None
    assert (noise.variance, noise.weight) == pytest.approx((0.0, math.inf), abs=1e-30)


def test_one_erratic_row_does_not_hide_the_differences_of_the_others() -> None:
    random = np.random.default_rng(8)
    tables, worlds, shown = 200, 8, 0
    for _ in range(tables):
        values = random.normal(0.0, 0.001, (7, worlds)) + random.normal(0.8, 0.02, worlds)
        values[0] += 0.002
        values[-1] += random.normal(0.0, 0.01, worlds)
        rows = [of_worlds([[value] for value in row]) for row in values]
        noise = common_noise(rows)
        pair = difference(rows[1], rows[0], noise=noise, confidence=0.95)
        assert pair is not None
        shown += pair.p_value < 0.05
    assert shown / tables > 0.85  # a paired t-test alone shows 92 %


def test_worlds_are_samples_whatever_happens_inside_them() -> None:
    row = of_worlds([[0.5, 0.7], [0.4], [0.9, 0.9, 0.9]])
    other = of_worlds([[0.4, 0.4, 0.1], [0.4], [0.6, 0.6]])
    found = difference(row, other, noise=None, confidence=0.95)
    expected = stats.ttest_1samp([0.2, 0.0, 0.3], 0.0)
    assert found is not None
    assert found.mean == pytest.approx(0.5 / 3)
    assert found.num_runs == 5
    assert found.p_value == pytest.approx(expected.pvalue)


def test_only_seeds_that_both_rows_have_are_compared() -> None:
    flat = np.zeros(30)
    row = measured({0: 0.9, 1: 0.5, 2: 0.1}, {0: flat + 0.9, 1: flat + 0.5, 2: flat + 0.1})
    other = measured({1: 0.4, 2: 0.3, 7: 0.0}, {1: flat + 0.4, 2: flat + 0.3, 7: flat})
    found = difference(row, other, noise=None, confidence=0.95)
    assert found is not None
    assert found.num_runs == 2
    assert found.mean == pytest.approx(-0.05)
    width = stats.t.ppf(0.975, 1) * 0.15
    assert (found.low, found.high) == pytest.approx((-0.05 - width, -0.05 + width))
    assert not found.is_significant
    nothing = measured({9: 0.1}, {9: flat})
    assert difference(row, nothing, noise=None, confidence=0.95) is None


def test_a_difference_without_any_noise_is_certain() -> None:
    same = difference(ZERO, ZERO, noise=None, confidence=0.95)
    other = difference(of_seeds([0.1] * 3), ZERO, noise=None, confidence=0.95)
    assert same is not None and other is not None
    assert same.p_value == 1.0
    assert other.p_value < 1e-100
    assert (other.low, other.high) == pytest.approx((0.1, 0.1))


def test_an_undefined_metric_has_no_difference() -> None:
    nothing = of_seeds([math.nan, math.nan], np.full(K, np.nan))
    found = difference(nothing, ZERO, noise=None, confidence=0.95)
    assert found is not None
    assert math.isnan(found.mean) and math.isnan(found.p_value)
    assert not found.is_significant


def test_holm_multiplies_the_smallest_by_their_number_and_keeps_the_order() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


@pytest.mark.parametrize(
    ("num_worlds", "num_seeds", "world_noise", "odd"),
    [
        (1, 3, 0.0, 1.0),
        (1, 5, 0.0, 1.0),
        (3, 3, 0.001, 1.0),
        (5, 2, 0.002, 1.0),
        (3, 3, 0.001, 4.0),
    ],
)
def test_five_percent_of_tables_of_equal_rows_show_any_difference(
    num_worlds: int, num_seeds: int, world_noise: float, odd: float
) -> None:
    """Family-wise error and coverage, simulated; the noise of one row's worlds may be odd."""
    random = np.random.default_rng(5)
    num_tables, num_rows, users, seeds = 200, 6, 0.001, 0.0025
    false, covered = 0, []

    def row(factor: float) -> Measured:
        values, replicates = {}, {}
        for world in map(str, range(num_worlds)):
            centre = random.normal(0, factor * world_noise) + random.normal(0, users)
            draws = random.normal(0, users, 60)
            values[world] = {s: centre + random.normal(0, seeds) for s in range(num_seeds)}
            replicates[world] = {s: value + draws for s, value in values[world].items()}
        return Measured(values, replicates)

    for _ in range(num_tables):
        rows = [row(1.0) for _ in range(num_rows)] + [row(odd)]
        noise = common_noise(rows)
        pairs = [difference(r, rows[0], noise=noise, confidence=0.95) for r in rows[1:]]
        found = {str(place): pair for place, pair in enumerate(pairs) if pair is not None}
        false += min(holm({name: pair.p_value for name, pair in found.items()}).values()) < 0.05
        covered += [pair.low < 0 < pair.high for pair in found.values()]
    assert false / num_tables < 0.05 + 2 * math.sqrt(0.05 * 0.95 / num_tables)
    assert 0.94 < np.mean(covered) < 0.985


@pytest.mark.parametrize("odd", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("worlds", [3, 5])
def test_rows_that_are_less_certain_than_the_others_do_not_borrow_their_certainty(
    worlds: int, odd: float
) -> None:
    """Two of ten rows, equal in truth: 5 % of tables may tell them apart."""
    random = np.random.default_rng(1)
    tables, told_apart = 800, 0
    for _ in range(tables):
        values = random.normal(0.0, 0.5, worlds) + random.normal(0.0, 1.0, (10, worlds))
        values[:2] += random.normal(0.0, math.sqrt(odd**2 - 1), (2, worlds))
        rows = [of_worlds([[value] for value in row]) for row in values]
        pair = difference(rows[0], rows[1], noise=common_noise(rows), confidence=0.95)
        assert pair is not None
        told_apart += pair.p_value < 0.05
    assert told_apart / tables < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)


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
    found = difference(*rows, noise=None, confidence=0.95)
    assert found is not None
    by_user = [
        np.array([roc_auc_score(*pair) for pair in zip(labels, score, strict=True)])
        for score in scores
    ]
    of_users = by_user[0] - by_user[1]
    assert found.mean == pytest.approx(of_users.mean(), abs=1e-6)
    weights = np.random.default_rng(5).poisson(1.0, (20000, USERS))
    expected = np.quantile(weights @ of_users / weights.sum(axis=1), [0.025, 0.975])
    width = expected[1] - expected[0]
    assert found.low == pytest.approx(expected[0], abs=0.06 * width)
    assert found.high == pytest.approx(expected[1], abs=0.06 * width)


def test_a_difference_is_significant_if_zero_is_refuted() -> None:
    spread = np.random.default_rng(6).normal(0.0, 0.1, 1000)
    for mean, expected in ((0.3, True), (-0.3, True), (0.05, False)):
        row, zero = of_seeds([mean, mean], spread), of_seeds([0.0, 0.0], np.zeros(1000))
        found = difference(row, zero, noise=None, confidence=0.95)
        assert found is not None
        assert found.is_significant is expected
        assert found.is_significant is not (found.low <= 0 <= found.high)
