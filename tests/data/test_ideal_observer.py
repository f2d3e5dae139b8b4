"""The ideal observer knows the world, sees the past only, and believes what Bayes' rule says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.data.synthetic.choice_likelihood import ChoiceLikelihood, Evidence, page_shares
from cdp_torchrec.data.synthetic.config import SOURCE, SyntheticConfig, recorded_config
from cdp_torchrec.data.synthetic.ideal_observer import click_probability, ideal_scores
from cdp_torchrec.data.synthetic.log import SimulatedLog, simulate_log
from cdp_torchrec.data.synthetic.oracle_ladder import climb
from cdp_torchrec.data.synthetic.simulation import _record, _show
from cdp_torchrec.data.synthetic.taste_belief import TasteBeliefs, collapse
from cdp_torchrec.data.synthetic.world import NO_QUERY, Sessions
from cdp_torchrec.ideal_scorer import ideal_scorer, oracle_ladder
from cdp_torchrec.metrics import grouped_auc

WORLD = SyntheticConfig(
    num_users=200,
    num_categories=3,
    items_per_category=20,
    queries_per_category=4,
    history_days=10,
    train_days=1,
    requests_per_day=2.0,
    browses_per_day=4.0,
    num_candidates=8,
    taste_drift=0.02,
    taste_jump_rate=0.005,
)


@pytest.fixture(scope="module")
def log() -> SimulatedLog:
    return simulate_log(WORLD)


def gauc(log: SimulatedLog, score: np.ndarray) -> float:
    label = log.requests.label
    request = np.repeat(np.arange(len(label)), label.shape[1])
    return grouped_auc(score.ravel(), label.ravel(), request).weighted_mean


def test_logits_without_taste_are_those_of_a_world_without_taste(log: SimulatedLog) -> None:
    sessions, items = log.requests.sessions, log.requests.items
    without = replace(log.world, config=WORLD.model_copy(update={"taste_strength": 0.0}))
    expected = without.utility(log.tastes, sessions, items)
    found = log.world.taste_free_logits(sessions, items)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_who_knows_the_taste_scores_the_true_click_probability(log: SimulatedLog) -> None:
    world, r = log.world, log.requests
    taste = world.taste(log.tastes, r.sessions.user[:, None], world.category_of(r.items))
    segment = world.segment_taste[world.user_segment[r.sessions.user]][:, None]
    own = (taste - np.sqrt(0.5 * WORLD.shared_taste) * segment).reshape(-1, 1, 3)
    certain = np.zeros((*own.shape, 3))
    found = click_probability(log, r, own, certain, np.ones(own.shape[:2]))
    np.testing.assert_allclose(found, r.click_probability, rtol=0, atol=1e-12)


def test_without_history_the_score_is_the_mean_over_all_tastes(log: SimulatedLog) -> None:
    world, r = log.world, log.requests
    mean = np.zeros(r.items.shape)
    rng = np.random.default_rng(0)
    draws = 400
    segment = world.segment_taste[world.user_segment]
    for _ in range(draws):
        own = rng.standard_normal(segment.shape)
        other = replace(world, user_taste=np.sqrt(0.5) * (segment + own))
        logits = other.utility(world.new_tastes(rng), r.sessions, r.items) + log.intercept
        mean += 1.0 / (1.0 + np.exp(-logits)) / draws
    prior = TasteBeliefs(WORLD, r.items.size)
    found = click_probability(log, r, *prior.taste(), prior.weight)
    assert np.abs(found - mean).max() < 0.1
    assert np.abs((found - mean).mean()) < 1e-3


def test_a_user_without_behaviours_is_scored_as_without_history() -> None:
    log = simulate_log(WORLD.model_copy(update={"new_user_rate": 0.5, "browses_per_day": 0.5}))
    scores = ideal_scores(log)
    _, known = log.gated_histories(log.requests)
    empty = known.sum(axis=1) == 0
    assert 10 < empty.sum() < len(empty) - 10
    np.testing.assert_allclose(
        scores.probability[empty], scores.without_history[empty], rtol=0, atol=1e-12
    )
    assert np.abs(scores.probability - scores.without_history)[~empty].max() > 0.1


def test_only_behaviours_before_the_request_count(log: SimulatedLog) -> None:
    first, known = log.gated_histories(log.requests)
    b, r = log.behaviours, log.requests
    category = log.world.category_of(b.item)
    for row in range(0, len(known), 40):
        for gate in range(WORLD.num_categories):
            inside = (b.user == r.sessions.user[row]) & (category == gate)
            places = np.flatnonzero(inside & (b.timestamp < 1000 * r.second[row]))
            assert known[row, gate] == len(places)
            assert (places == first[row, gate] + np.arange(len(places))).all()


def test_the_score_lies_between_no_history_and_the_truth_and_is_calibrated(
    log: SimulatedLog,
) -> None:
    scores = ideal_scores(log)
    low, found, truth = (
        gauc(log, score)
        for score in (scores.without_history, scores.probability, log.requests.click_probability)
    )
    assert low + 0.5 * (truth - low) < found < truth + 0.01
    label, score = log.requests.label.ravel(), scores.probability.ravel()
    assert score.sum() == pytest.approx(label.sum(), rel=0.1)
    # Sharper or blunter probabilities fit worse: what it believes is as certain as it should be.
    logits = np.log(score / (1.0 - score))
    fits = [log_loss(label, 1.0 / (1.0 + np.exp(-sharp * logits))) for sharp in (0.8, 1.0, 1.25)]
    assert fits[1] == min(fits)


def test_the_error_is_that_of_another_seed(log: SimulatedLog) -> None:
    one, other = (ideal_scores(log, seed=seed, num_points=10) for seed in (1, 2))
    apart = gauc(log, one.probability) - gauc(log, other.probability)
    assert 0 < abs(apart) < 4 * np.hypot(one.gauc_error, other.gauc_error)
    again = ideal_scores(log, seed=1, num_points=10)
    np.testing.assert_array_equal(one.probability, again.probability)


def test_misclicks_on_what_was_opened_before_are_no_evidence_of_taste() -> None:
    settings = {"misclick_rate": 1.0, "popularity_click_rate": 0.0, "exposure_feedback": 0.6}
    log = simulate_log(WORLD.model_copy(update=settings | {"requests_per_day": 0.5}))
    scores = ideal_scores(log, num_points=10)
    # Pages of searches are clicked the more often the better they fit, so these do say something.
    searched = np.unique(log.behaviours.user[log.behaviours.searched == 1])
    browsing = ~np.isin(log.requests.sessions.user, searched)
    assert browsing.sum() > 5
    found = scores.probability[browsing]
    np.testing.assert_allclose(found, scores.without_history[browsing], rtol=0, atol=1e-9)


# --- the likelihood ------------------------------------------------------------------------------


def test_shares_of_pages_are_those_of_the_clocks() -> None:
    exposure = 1.0 / np.arange(1.0, 21.0)
    exposure /= exposure.sum()
    clocks = np.random.default_rng(0).standard_exponential((40_000, 20)) / exposure
    shown = np.argpartition(clocks, 7, axis=1)[:, :8]
    found = np.bincount(shown.ravel(), minlength=20) / shown.size
    np.testing.assert_allclose(page_shares(exposure, 8), found, atol=2e-3)
    both = page_shares(np.stack([exposure, exposure[::-1]]), 8)
    np.testing.assert_allclose(both[1], both[0][::-1])


@pytest.mark.parametrize(("searched", "feedback"), [(False, 0.0), (True, 0.0), (False, 0.6)])
def test_the_likelihood_is_how_often_the_simulation_records_an_item(
    log: SimulatedLog, searched: bool, feedback: float
) -> None:
    config = WORLD.model_copy(update={"exposure_feedback": feedback})
    world, count, category = replace(log.world, config=config), 30_000, 1
    rng = np.random.default_rng(0)
    users = np.flatnonzero(np.diff(world.user_categories, axis=1, prepend=0)[:, category] > 0.3)
    likelihood = ChoiceLikelihood(world, log.intercept)
    opened = rng.integers(0, 3, (WORLD.num_users, 3, 20)).astype(np.int32) if feedback else None
    for user in users[:3]:
        own = np.full(count, category)
        sessions = Sessions(
            user=np.full(count, user),
            category=world.draw_categories(np.full(count, user), rng) if searched else own,
            query=np.full(count, NO_QUERY),
            hour=np.full(count, 18),
            weekday=np.full(count, 2),
            client=rng.integers(0, 4, count),
            search_source=rng.integers(0, 5, count),
        )
        if searched:
            rank = rng.choice(4, count, p=world.query_popularity)
            sessions = replace(sessions, query=4 * sessions.category + rank)
        pages, logits = _show(world, log.tastes, sessions, rng, opened)
        if searched:
            probability = 1.0 / (1.0 + np.exp(-(logits + log.intercept)))
            row, column = np.nonzero(rng.random(pages.shape) < probability)
        else:
            row, column = np.arange(count), np.argmax(logits + rng.gumbel(size=pages.shape), axis=1)
        recorded = _record(world, pages[row], column, rng)
        recorded = recorded[world.category_of(recorded) == category] % 20
        found = np.bincount(recorded, minlength=20) / len(recorded)
        taste = world.taste(log.tastes, np.array(user), np.array(category))
        evidence = Evidence(
            user=np.full(20, user),
            category=np.full(20, category),
            rank=np.arange(20),
            hour=np.full(20, 18),
            weekday=np.full(20, 2),
            searched=np.full(20, searched),
        )
        exposure = world.item_popularity
        if opened is not None:
            exposure = world.exposure(opened[user, category])
        shares = page_shares(exposure, 8)
        tastes, everywhere = np.tile(taste, (20, 500, 1)), np.tile(exposure, (20, 1))
        expected = shares * likelihood(tastes, evidence, rng, everywhere).mean(axis=1)
        expected /= expected.sum()
        assert 0.5 * np.abs(found - expected).sum() < 0.06
        assert np.abs(found - expected).sum() < 0.3 * np.abs(found - shares).sum()


# --- beliefs -------------------------------------------------------------------------------------


def test_a_belief_is_what_bayes_rule_makes_of_the_behaviours() -> None:
    still = WORLD.model_copy(update={"taste_drift": 0.0, "taste_jump_rate": 0.0})
    log = simulate_log(still)
    likelihood, rng = ChoiceLikelihood(log.world, log.intercept), np.random.default_rng(0)
    b, user = log.behaviours, int(np.bincount(log.behaviours.user).argmax())
    rows = np.flatnonzero((b.user == user) & (log.world.category_of(b.item) == 0))[:8]
    evidence = Evidence(
        user=b.user[rows],
        category=np.zeros(len(rows), np.int64),
        rank=b.item[rows] % 20,
        hour=np.full(len(rows), 12),
        weekday=np.zeros(len(rows), np.int64),
        searched=b.searched[rows] == 1,
    )
    # Importance sampling from the prior, all behaviours at once.
    tastes = np.sqrt(1.0 - 0.5 * still.shared_taste) * rng.standard_normal((40_000, 3))
    segment = log.world.segment_taste[log.world.user_segment[user]]
    offset = np.sqrt(0.5 * still.shared_taste) * segment
    weight = np.ones(len(tastes))
    for n in range(len(rows)):
        one = evidence.part(np.array([n]))
        # Queries and sources are drawn, so the likelihood is a mean.
        draws = [likelihood((tastes + offset)[None], one, rng)[0] for _ in range(4)]
        weight *= np.mean(draws, axis=0)
    weight /= weight.sum()
    mean = weight @ tastes
    covariance = (weight[:, None] * (tastes - mean)).T @ (tastes - mean)
    # One behaviour after the other, many points.
    belief = TasteBeliefs(still, 1)
    for n in range(len(rows)):
        points = rng.standard_normal((1, 3, 2000, 3))
        points = np.concatenate([points, -points], axis=2)
        center, spread = belief.taste()
        root = np.asarray(np.linalg.cholesky(spread), np.float64)
        at = center[:, :, None] + points @ root.swapaxes(-1, -2) + offset
        found = likelihood(at.reshape(1, -1, 3), evidence.part(np.array([n])), rng)
        belief.learn(points, root, found.reshape(points.shape[:3]))
    center, spread = collapse(belief.weight, *belief.taste())
    np.testing.assert_allclose(center[0], mean, atol=0.08)
    np.testing.assert_allclose(spread[0], covariance, atol=0.08)
    assert np.trace(covariance) < 0.7 * 3


@pytest.mark.parametrize(("drift", "jumps"), [(0.3, 0.0), (0.0, 0.2), (0.1, 0.1)])
def test_a_belief_forgets_as_the_tastes_do(drift: float, jumps: float) -> None:
    config = WORLD.model_copy(update={"taste_drift": drift, "taste_jump_rate": jumps})
    beliefs = TasteBeliefs(config, 2)
    beliefs.mean[:, 0] = [0.1, 0.2, 0.3, 2.0, -1.0, 0.5]
    beliefs.covariance[:] = 0.04 * np.eye(6)
    for nights in (np.array([1, 3]), np.array([4, 2])):
        beliefs.advance(nights)
    mean, covariance = collapse(beliefs.weight, beliefs.mean, beliefs.covariance)
    kept, stays = (1.0 - drift**2) ** 2.5, (1.0 - jumps) ** 5
    old = kept * np.array([2.0, -1.0, 0.5])
    for row in range(2):  # however the nights are divided
        np.testing.assert_allclose(mean[row], [0.1, 0.2, 0.3, *(stays * old)], atol=1e-12)
        changed = stays * (kept**2 * 0.04 + 1.0 - kept**2) + (1.0 - stays)
        expected = changed * np.eye(3) + stays * (1.0 - stays) * np.outer(old, old)
        np.testing.assert_allclose(covariance[row, 3:, 3:], expected, atol=1e-12)
        np.testing.assert_allclose(covariance[row, :3, :3], 0.04 * np.eye(3), atol=1e-12)


def test_what_other_categories_say_of_the_own_part_adds_up_as_gaussians_do() -> None:
    here, there = TasteBeliefs(WORLD, 1), TasteBeliefs(WORLD, 1)
    there.mean[:, 0, :3] = [1.0, 0.0, -1.0]
    there.covariance[:, 0, :3, :3] = 0.25 * np.eye(3)
    precision, pull = there.own_part()
    np.testing.assert_allclose(precision[0], 3.0 * np.eye(3))  # 1 / .25, less the prior's 1
    here.add_own_part(precision, pull)
    np.testing.assert_allclose(here.mean[0, 0], [1.0, 0.0, -1.0, 0.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(
        here.covariance[0, 0], np.diag([0.25, 0.25, 0.25, 1.0, 1.0, 1.0]), atol=1e-12
    )


# --- the dataset ---------------------------------------------------------------------------------


def test_each_rung_of_the_ladder_knows_more(log: SimulatedLog) -> None:
    without, pooled, weighted, taste, all_of_it = (rung.gauc for rung in climb(log))
    assert without < pooled < taste < all_of_it
    assert without < weighted < all_of_it


def test_scores_meet_their_impressions(tiny_dataset: Path, one_rank: None) -> None:
    from cdp_torchrec.data.config import DataConfig
    from cdp_torchrec.data.reader import DatasetReader

    scorer = ideal_scorer(tiny_dataset)
    assert scorer is not None
    order = DatasetReader(DataConfig(dir=tiny_dataset)).impressions(
        "test", extra_columns=["click_probability"]
    )
    whole = order.take(0, 0, order.num_impressions)
    score = scorer.score("ideal", whole)
    truth = whole.candidate["click_probability"]
    assert np.corrcoef(score, truth)[0, 1] > 0.7
    part = order.take(0, 13, 47)  # begins and ends inside a page
    np.testing.assert_array_equal(scorer.score("ideal", part), score[13:47])


def test_a_log_that_was_not_simulated_or_by_another_release_has_no_observer(
    tiny_dataset: Path, tmp_path: Path, one_rank: None
) -> None:
    assert recorded_config("logs/train.csv") is None
    found = recorded_config(SOURCE + WORLD.model_dump_json())
    assert found == WORLD
    schema = (tiny_dataset / "schema.toml").read_text()
    for folder in ("test", "vocabulary"):
        (tmp_path / folder).symlink_to(tiny_dataset / folder)
    (tmp_path / "schema.toml").write_text(schema.replace(SOURCE, "made of "))
    assert ideal_scorer(tmp_path) is None
    with pytest.raises(ConfigError, match="was not simulated, so nobody knows its tastes"):
        oracle_ladder(tmp_path)
    for old, new in (('\\"seed\\":0', '\\"seed\\":1'), ('\\"seed\\"', '\\"seeed\\"')):
        changed = schema.replace(old, new).replace(old.replace("\\", ""), new.replace("\\", ""))
        assert changed != schema
        (tmp_path / "schema.toml").write_text(changed)
        with pytest.raises(DatasetError, match="another release has simulated this log"):
            ideal_scorer(tmp_path)
