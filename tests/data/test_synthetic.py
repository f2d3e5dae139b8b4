import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.metrics import log_loss, roc_auc_score

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.dataset import make_if_missing
from cdp_torchrec.data.schema import DatasetError, load_schema
from cdp_torchrec.data.synthetic.config import SOURCE, SyntheticConfig
from cdp_torchrec.data.synthetic.dataset import make_synthetic, write_synthetic_staging
from cdp_torchrec.data.synthetic.simulation import Day, simulate
from cdp_torchrec.data.synthetic.world import World, build_world

TINY = SyntheticConfig(
    num_users=300,
    num_categories=4,
    items_per_category=30,
    queries_per_category=5,
    history_days=5,
    train_days=2,
    num_candidates=8,
)


def run(**settings: object) -> tuple[World, list[Day]]:
    world = build_world(TINY.model_copy(update=settings))
    return world, list(simulate(world))


def clicks_of(days: list[Day]) -> tuple[np.ndarray, np.ndarray]:
    """Click probabilities and labels of all days, [N, K] each."""
    requests = [day.requests for day in days]
    return (
        np.concatenate([r.click_probability for r in requests]),
        np.concatenate([r.label for r in requests]),
    )


def taste_match(world: World, days: list[Day]) -> np.ndarray:
    """Agreement of behaviours and tastes, averaged per user: 0 without any relation."""
    total, count = np.zeros(TINY.num_users), np.zeros(TINY.num_users)
    for day in days:
        user, item = day.behaviours.user, day.behaviours.item
        taste = day.tastes[user, world.category_of(item)]
        np.add.at(total, user, (taste * world.item_attributes[item]).sum(axis=1))
        np.add.at(count, user, 1)
    return total[count > 0] / count[count > 0]


def z_score(values: np.ndarray) -> float:
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))


@pytest.fixture(scope="module")
def log() -> tuple[World, list[Day]]:
    return run(num_users=1500)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("synthetic") / "log"
    make_synthetic(TINY, output)
    return output


def test_clicks_are_as_frequent_as_their_probabilities(log: tuple[World, list[Day]]) -> None:
    probability, label = (part.ravel() for part in clicks_of(log[1]))
    tenth = np.argsort(np.argsort(probability)) * 10 // len(probability)
    for group in range(10):
        p, y = probability[tenth == group], label[tenth == group]
        assert abs((y.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())) < 4


def test_mean_click_probability_is_the_configured_rate(log: tuple[World, list[Day]]) -> None:
    assert clicks_of(log[1])[0].mean() == pytest.approx(TINY.click_through_rate, abs=0.015)


@pytest.mark.parametrize(
    "effect",
    [
        "taste_strength",
        "emphasis_strength",
        "intent_strength",
        "context_strength",
        "quality_strength",
        "position_strength",
    ],
)
def test_forgetting_an_effect_ranks_worse_than_the_true_probabilities(
    log: tuple[World, list[Day]], effect: str
) -> None:
    world, days = log
    day, label = days[-1], days[-1].requests.label.ravel()
    without = replace(world, config=world.config.model_copy(update={effect: 0.0}))
    score = without.utility(day.tastes, day.requests.sessions, day.requests.items)
    truth = roc_auc_score(label, day.requests.click_probability.ravel())
    assert roc_auc_score(label, score.ravel()) < truth - 0.001


def test_tastes_of_long_ago_rank_worse_than_those_of_the_day() -> None:
    world, days = run(num_users=1500, taste_jump_rate=0.1)
    last, label = days[-1].requests, days[-1].requests.label.ravel()
    aucs = [
        roc_auc_score(label, world.utility(days[n].tastes, last.sessions, last.items).ravel())
        for n in (-1, -4, 0)
    ]
    assert aucs[0] > aucs[1] + 0.003 > aucs[2] + 0.006


def test_position_costs_logits_by_doubling_and_patience_of_the_client() -> None:
    world, days = run()
    requests, tastes = days[-1].requests, days[-1].tastes
    here = world.utility(tastes, requests.sessions, requests.items)
    there = world.utility(tastes, requests.sessions, requests.items[:, ::-1])[:, ::-1]
    patience = world.client_patience[requests.sessions.client][:, None]
    doublings = np.log2(np.arange(1, 9))
    expected = TINY.position_strength * patience * (doublings[::-1] - doublings)
    np.testing.assert_allclose(here - there, expected, atol=1e-9)


def test_clicks_fall_with_position(log: tuple[World, list[Day]]) -> None:
    rates = clicks_of(log[1])[0].mean(axis=0)
    assert (np.diff(rates) < 0).all()


def test_a_page_shows_distinct_items_mostly_of_the_query_category(
    log: tuple[World, list[Day]],
) -> None:
    world, days = log
    requests = days[-1].requests
    items, sessions = requests.items, requests.sessions
    assert (np.diff(np.sort(items, axis=1), axis=1) > 0).all()
    assert (sessions.query // world.config.queries_per_category == sessions.category).all()
    away = (world.category_of(items) != sessions.category[:, None]).mean()
    assert away == pytest.approx(TINY.off_category_rate, abs=0.02)


def test_popular_items_are_shown_more_often(log: tuple[World, list[Day]]) -> None:
    items = np.concatenate([day.requests.items.ravel() for day in log[1]])
    shown = np.bincount(items % TINY.items_per_category)
    assert shown[0] > 2 * shown[10] > 2 * shown[-1]


def test_search_source_decides_which_attributes_of_a_taste_matter() -> None:
    for strength in (0.0, 1.0):
        world, days = run(emphasis_strength=strength)
        requests, tastes = days[-1].requests, days[-1].tastes
        other = replace(requests.sessions, search_source=(requests.sessions.search_source + 1) % 5)
        here = world.utility(tastes, requests.sessions, requests.items)
        there = world.utility(tastes, other, requests.items)
        assert np.allclose(here, there) == (strength == 0.0)


def test_without_noise_behaviours_follow_taste_and_each_noise_source_weakens_that() -> None:
    quiet = {"misclick_rate": 0.0, "popularity_click_rate": 0.0}
    clean = taste_match(*run(**quiet)).mean()
    assert clean > 0.5
    for source in quiet:
        half = taste_match(*run(**{**quiet, source: 0.5})).mean()
        assert half == pytest.approx(0.5 * clean, abs=0.15)


@pytest.mark.parametrize(
    "rates",
    [
        {"misclick_rate": 1.0, "popularity_click_rate": 0.0},
        {"misclick_rate": 0.0, "popularity_click_rate": 1.0},
    ],
)
def test_browsing_under_pure_noise_is_independent_of_taste(rates: dict[str, float]) -> None:
    # Browsing days only: a page of a request is clicked more often the better it fits the taste,
    # so even its misclicks are not independent of the taste.
    world, days = run(history_days=20, train_days=1, **rates)
    assert abs(z_score(taste_match(world, days[:20]))) < 4


def test_popularity_clicks_fall_on_more_popular_items_than_misclicks() -> None:
    mean_rank = {}
    for source in ("misclick_rate", "popularity_click_rate"):
        rates = {"misclick_rate": 0.0, "popularity_click_rate": 0.0, source: 1.0}
        world, days = run(**rates)
        items = np.concatenate([day.behaviours.item for day in days])
        mean_rank[source] = (items % world.config.items_per_category).mean()
    assert mean_rank["popularity_click_rate"] < 0.3 * mean_rank["misclick_rate"]


def test_without_noise_every_click_is_a_later_behaviour_and_nothing_else_is_searched() -> None:
    _, days = run(misclick_rate=0.0, popularity_click_rate=0.0)
    for day in days:
        r, b = day.requests, day.behaviours
        row, position = np.nonzero(r.label)
        clicked = np.stack([r.sessions.user[row], r.items[row, position], 1000 * r.second[row]])
        behaved = np.stack([b.user, b.item, b.timestamp])[:, b.searched == 1]
        clicked, behaved = (part[:, np.lexsort(part[::-1])] for part in (clicked, behaved))
        np.testing.assert_array_equal(clicked[:2], behaved[:2])
        assert (behaved[2] > clicked[2]).all()


def test_behaviours_of_a_user_are_strictly_ordered_and_never_share_a_time_with_a_request() -> None:
    _, days = run(requests_per_day=10.0, browses_per_day=20.0)
    for day in days:
        b, requests = day.behaviours, day.requests
        same_user = np.diff(b.user) == 0
        assert (np.diff(b.timestamp)[same_user] > 0).all()
        assert (b.timestamp % 1000 > 0).all()
        assert len(requests.second) == 0 or (np.diff(requests.second) >= 0).all()


def test_history_of_a_request_counts_only_strictly_earlier_behaviours(
    dataset: Path, tmp_path: Path
) -> None:
    write_synthetic_staging(TINY, tmp_path)
    behaviours = pq.read_table(tmp_path / "behaviours").to_pylist()
    times: dict[str, list[int]] = {}
    for behaviour in behaviours:
        times.setdefault(behaviour["user_id"], []).append(behaviour["timestamp"])
    columns = ["user_id", "timestamp", "history_length"]
    users = pq.read_table(dataset / "vocabulary" / "user.parquet").to_pydict()["raw"]
    for request in pq.read_table(dataset / "test", columns=columns).to_pylist():
        earlier = times.get(users[request["user_id"] - 1], [])
        expected = sum(time < request["timestamp"] for time in earlier)
        assert request["history_length"] == expected


def test_late_users_have_no_past() -> None:
    world, days = run(new_user_rate=0.5)
    assert 0.4 < (world.user_first_day > 0).mean() < 0.6
    for day in days:
        assert (world.user_first_day[day.behaviours.user] <= day.number).all()
        assert (world.user_first_day[day.requests.sessions.user] <= day.number).all()


@pytest.mark.parametrize(("drift", "jumps"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.2, 0.1)])
def test_tastes_forget_at_the_rate_of_drift_and_jumps(drift: float, jumps: float) -> None:
    _, days = run(num_users=3000, taste_drift=drift, taste_jump_rate=jumps)
    first, last = days[0].tastes.ravel(), days[-1].tastes.ravel()
    kept = (np.sqrt(1 - drift**2) * (1 - jumps)) ** (len(days) - 1)
    assert np.corrcoef(first, last)[0, 1] == pytest.approx(kept, abs=0.03)
    assert last.std() == pytest.approx(1.0, abs=0.03)


def test_one_seed_gives_one_log_bit_for_bit_and_another_seed_another(tmp_path: Path) -> None:
    other = TINY.model_copy(update={"seed": 1})
    for name, config in (("a", TINY), ("b", TINY), ("c", other)):
        write_synthetic_staging(config, tmp_path / name)
    files = sorted(f.relative_to(tmp_path / "a") for f in (tmp_path / "a").rglob("*.parquet"))
    assert len(files) == 8 + 3
    for file in files:
        a, b, c = (pq.read_table(tmp_path / name / file) for name in "abc")
        assert a.equals(b)
        assert not a.equals(c)


def test_bayes_metrics_are_those_of_the_written_test_split(dataset: Path) -> None:
    schema = load_schema(dataset)
    table = pq.read_table(dataset / "test")
    pages = table.to_pydict()
    label = np.concatenate(pages["label"])
    probability = np.concatenate(pages["click_probability"])
    assert schema.bayes["auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
    assert schema.bayes["log_loss"] == pytest.approx(log_loss(label, probability), abs=1e-9)
    by_user: dict[int, tuple[list[int], list[float]]] = {}
    by_request = []
    rows = zip(pages["user_id"], pages["label"], pages["click_probability"], strict=True)
    for user, labels, probabilities in rows:
        labels_of, probabilities_of = by_user.setdefault(user, ([], []))
        labels_of.extend(labels)
        probabilities_of.extend(probabilities)
        if len(set(labels)) == 2:
            by_request.append(roc_auc_score(labels, probabilities))
    mixed = [roc_auc_score(y, p) for y, p in by_user.values() if len(set(y)) == 2]
    assert schema.bayes["uauc"] == pytest.approx(np.array(mixed).mean(), abs=1e-12)
    # All pages have the same length, so weighting by impressions changes nothing.
    assert schema.bayes["gauc"] == pytest.approx(np.array(by_request).mean(), abs=1e-12)


def test_dataset_has_every_role_and_every_kind_of_feature(dataset: Path) -> None:
    schema = load_schema(dataset)
    assert {f.role for f in schema.features} == {"user", "query", "item", "context", "scene"}
    assert {f.kind for f in schema.features} == {"id", "ids", "number"}
    assert schema.history.category_entity == schema.feature("category_id").entity
    assert schema.splits["train"].requests > schema.splits["test"].requests > 100


def test_an_existing_output_is_refused_and_nothing_is_left_beside_a_dataset(dataset: Path) -> None:
    assert [path.name for path in dataset.parent.iterdir()] == ["log"]
    with pytest.raises(DatasetError, match=r"log exists; remove it or choose another"):
        make_synthetic(TINY, dataset)


def test_settings_of_another_log_than_the_one_that_is_there_are_doubted_aloud(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_if_missing(DataConfig(dir=dataset, synthetic=TINY))
    assert not caplog.text
    other = TINY.model_copy(update={"seed": 7, "misclick_rate": 0.3})
    make_if_missing(DataConfig(dir=dataset, synthetic=other))
    assert (
        f"data.synthetic is ignored: {dataset} holds another log (seed = 0, not 7, " in caplog.text
    )
    assert f"misclick_rate = {TINY.misclick_rate}, not 0.3); name another data.dir" in caplog.text
    real = Path(shutil.copytree(dataset, tmp_path / "real"))
    schema = (real / "schema.toml").read_text()
    (real / "schema.toml").write_text(schema.replace(SOURCE, "a log: "))
    make_if_missing(DataConfig(dir=real, synthetic=TINY))
    assert f"{real} holds another log (synthetic); name" in caplog.text


def test_a_world_without_test_requests_is_refused(tmp_path: Path) -> None:
    empty = TINY.model_copy(update={"requests_per_day": 1e-9})
    with pytest.raises(ConfigError, match="test day has no requests; raise num_users"):
        make_synthetic(empty, tmp_path / "log")
    assert not list(tmp_path.iterdir())


def test_all_contradictions_of_a_world_are_named_at_once() -> None:
    wrong = "num_candidates=50 items_per_category=20 misclick_rate=0.95 browses_per_day=0"
    with pytest.raises(ConfigError) as refused:
        load_config(SyntheticConfig, wrong.split())
    lines = str(refused.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        "num_candidates",
        "misclick_rate",
        "browses_per_day",
    ]


@pytest.mark.parametrize("feedback", [0.0, 0.5])
def test_exposure_feedback_shows_people_what_they_opened_on_earlier_days(feedback: float) -> None:
    # Pure misclicks: without feedback, nothing ties what a user opens today to yesterday.
    noise = {"misclick_rate": 1.0, "popularity_click_rate": 0.0, "popularity_exponent": 0.0}
    _, days = run(num_users=1500, history_days=20, exposure_feedback=feedback, **noise)
    opened = np.zeros((1500, TINY.num_items))
    shown_again, visits = 0.0, 0
    for day in days:
        user, item = day.behaviours.user, day.behaviours.item
        category = (item // TINY.items_per_category) * TINY.items_per_category
        inside = category[:, None] + np.arange(TINY.items_per_category)
        known = opened[user[:, None], inside].sum(axis=1)
        shown_again += (opened[user, item][known > 0] / known[known > 0]).sum()
        visits += (known > 0).sum()
        np.add.at(opened, (user, item), 1)
    once = 1.0 / TINY.items_per_category
    share = shown_again / visits
    if feedback:
        assert share > 1.5 * once
    else:
        assert share == pytest.approx(once, rel=0.15)


def test_a_simulated_log_stays_what_it_was() -> None:
    _, days = run()
    bits = hashlib.sha256()
    for day in days:
        r, b = day.requests, day.behaviours
        for part in (r.second, r.items, r.label, b.user, b.item, b.timestamp, b.searched):
            bits.update(part.tobytes())
    assert bits.hexdigest()[:16] == "5f0dc0b0f7833471"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_users": 0}, "num_users"),
        ({"misclick_rate": 1.5}, "misclick_rate"),
        ({"click_through_rate": 0.0}, "click_through_rate"),
        ({"taste_strength": -1.0}, "taste_strength"),
        (
            {"num_candidates": 50, "items_per_category": 20},
            "num_candidates: must not exceed items_per_category = 20",
        ),
        ({"misclick_rate": 0.7, "popularity_click_rate": 0.6}, "must not exceed 1 together"),
        ({"browses_per_day": 0.0}, "leaves the history_days = 28 days of free browsing empty"),
        ({"taste_drift": 1.1}, "taste_drift"),
        ({"taste_jump_rate": -0.1}, "taste_jump_rate"),
        ({"exposure_feedback": 1.0}, "exposure_feedback"),
        ({"misclick": 0.1}, "misclick"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        SyntheticConfig.model_validate(settings)
