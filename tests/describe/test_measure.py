"""The figures of a log, against loops over its requests."""

import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.config import VocabularyConfig
from cdp_torchrec.data.history.segments import open_history, stores_of
from cdp_torchrec.data.prepare.dataset_files import row_groups
from cdp_torchrec.data.prepare.split_figures import SplitFigures
from cdp_torchrec.data.request_files import Impressions, RequestFiles, concatenate
from cdp_torchrec.data.schema import Entity, Feature, HistorySchema, Schema, Split, load_schema
from cdp_torchrec.describe.gate_levels import GateLevels, _matches
from cdp_torchrec.describe.histories import Histories
from cdp_torchrec.describe.id_coverage import IdCoverage, starter_minimum_counts
from cdp_torchrec.describe.measure import LogMeasures, measure_log
from cdp_torchrec.describe.over_time import bins_of
from cdp_torchrec.describe.single_features import PLACE, SingleFeatures, by_click_rate
from tests.describe.logs import lists


@pytest.fixture(scope="module")
def log(tiny_dataset: Path, one_rank: None) -> LogMeasures:
    return measure_log(tiny_dataset)


@pytest.fixture(scope="module")
def parts(tiny_dataset: Path) -> dict[str, Impressions]:
    """Each split at once."""
    schema = load_schema(tiny_dataset)
    found = {}
    for name in ("train", "test"):
        files = RequestFiles(tiny_dataset, schema, name)
        blocks = [files.read(block) for block in range(len(files.blocks))]
        found[name] = concatenate(blocks)
    return found


def gauc(score: np.ndarray, part: Impressions) -> float:
    label, index = part.candidate["label"], part.request_index
    values, sizes = [], []
    for request in np.unique(index):
        rows = index == request
        won, lost = score[rows & (label == 1)], score[rows & (label == 0)]
        if len(won) and len(lost):
            difference = won[:, None] - lost
            values.append((difference > 0).mean() + 0.5 * (difference == 0).mean())
            sizes.append(rows.sum())
    return float(np.average(values, weights=sizes))


def test_a_number_ranks_by_its_size_and_an_id_by_its_click_rate_in_training(
    log: LogMeasures, parts: dict[str, Impressions]
) -> None:
    train, test = parts["train"], parts["test"]
    price = gauc(test.candidate["log_price"], test)
    assert log.single["log_price, by size"] == pytest.approx(max(price, 1 - price))
    clicks, shown = (np.zeros(1 + train.candidate["position"].max()) for _ in range(2))
    np.add.at(clicks, train.candidate["position"], train.candidate["label"])
    np.add.at(shown, train.candidate["position"], 1)
    score = (clicks + 10 * clicks.sum() / shown.sum()) / (shown + 10)
    found = gauc(score[test.candidate["position"]], test)
    assert log.single[by_click_rate("position")] == pytest.approx(found)
    assert PLACE in log.single


def test_a_part_takes_its_own_memory_however_many_ids_and_users_there_are(
    tiny_dataset: Path, parts: dict[str, Impressions]
) -> None:
    schema, test, many = load_schema(tiny_dataset), parts["test"], 2_000_000
    ids = {
        name: entity.model_copy(update={"num_ids": many})
        for name, entity in schema.entities.items()
    }
    single = SingleFeatures(schema.model_copy(update={"entities": ids}))
    (store,) = stores_of(open_history(tiny_dataset, schema))
    split = SplitFigures(schema, store, dict.fromkeys(schema.entities, 1), with_leaks=False)
    split.requests_of_users = np.zeros(many, np.int64)
    coverage = IdCoverage(tiny_dataset, schema, store, until=0)
    coverage._test = {name: np.zeros(many, np.int64) for name in coverage._test}
    table = next(row_groups(tiny_dataset / "test", split.columns))
    tracemalloc.start()
    for add in (single.learn, single.measure, coverage.add):
        add(test)
    split.add(table, of=len(test.request_index))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * many
    assert split.requests_of_users.sum() == len(table)


def test_what_is_missing_in_some_files_ranks_the_requests_of_all(
    tiny_dataset: Path, parts: dict[str, Impressions]
) -> None:
    test = parts["test"]
    price = test.candidate["log_price"].copy()
    first = test.request_index < 20
    price[first & (test.candidate["label"] == 0)] = np.nan
    spoiled = replace(test, candidate={**test.candidate, "log_price": price})
    whole, halves = (SingleFeatures(load_schema(tiny_dataset)) for _ in range(2))
    whole.measure(spoiled)
    assert whole.gauc()["log_price, if missing"] < 0.8
    for rows in (first, ~first):
        index = test.request_index[rows]
        requests = np.unique(index)
        part = replace(
            spoiled,
            request={name: column[requests] for name, column in spoiled.request.items()},
            candidate={name: column[rows] for name, column in spoiled.candidate.items()},
            request_index=index - index.min(),
        )
        halves.measure(part)
    assert halves.gauc() == pytest.approx(whole.gauc())


def test_coverage_counts_the_ids_with_rows_in_test_and_behaviours(
    tiny_dataset: Path, log: LogMeasures, parts: dict[str, Impressions]
) -> None:
    counts = pq.read_table(tiny_dataset / "vocabulary" / "item.parquet")["count"].to_numpy()
    behaved = np.load(tiny_dataset / "history" / "by_time" / "item.npy")
    for minimum in (1, 20, 50, 100_000):
        kept = np.append(False, counts >= minimum)
        found = log.coverage.at("item", minimum)
        assert found.rows == kept.sum()
        assert found.of_test == pytest.approx(kept[parts["test"].candidate["item_id"]].mean())
        assert found.of_behaviours == pytest.approx(kept[behaved].mean())
    assert np.isnan(log.coverage.at("user", 1).of_behaviours)


def test_a_gate_passes_the_behaviours_with_the_value_of_the_candidate(
    tiny_dataset: Path, log: LogMeasures, parts: dict[str, Impressions]
) -> None:
    test = parts["test"]
    past = defaultdict(list)
    history = tiny_dataset / "history"
    offsets = np.load(history / "user_offsets.npy")
    columns = [np.load(history / "by_time" / f"{n}.npy") for n in ("timestamp", "category", "item")]
    for user in range(len(offsets) - 1):
        rows = slice(offsets[user], offsets[user + 1])
        past[user] = list(zip(*(column[rows].tolist() for column in columns), strict=True))
    names = {"category_id": 1, "item_id": 2}
    shares, empty = defaultdict(list), Counter()
    for place, request in enumerate(test.request_index):
        user, before = test.request["user_id"][request], test.request["timestamp"][request]
        seen = [behaviour for behaviour in past[user] if behaviour[0] < before]
        for name, column in names.items():
            if seen:
                value = test.candidate[name][place]
                passed = sum(behaviour[column] == value for behaviour in seen)
                shares[name].append(passed / len(seen))
                empty[name] += not passed
    found = {level.name: level for level in log.gates}
    for name in names:
        assert found[name].impressions.sum() == len(shares[name])
        assert found[name].empty.sum() == empty[name]
        assert found[name].pass_rate == pytest.approx(np.mean(shares[name]))


def test_a_missing_value_of_a_candidate_passes_nothing() -> None:
    owner, behaved = np.array([0, 0, 1]), np.array([0, 5, 0])
    index, value = np.array([0, 0, 1]), np.array([0, 5, 0])
    assert list(_matches(owner, behaved, index, value)) == [0, 1, 0]


def test_only_a_feature_that_belongs_to_the_item_can_be_a_gate() -> None:
    names = ("item_id", "brand", "mood")
    split = Split(requests=1, impressions=4, clicks=1, first_timestamp=0, last_timestamp=1)
    schema = Schema(
        name="x",
        source="x",
        entities={name: Entity(num_ids=9, digest="0" * 64) for name in (*names, "user")},
        features=tuple(
            Feature(name=name, role="item", level="candidate", kind="id", entity=name)
            for name in names
        ),
        history=HistorySchema(item_entity="item_id"),
        splits={"train": split, "test": split},
    )
    levels = GateLevels(schema)
    items = [[1, 2], [1, 2], [2, 1]]
    brands, moods = [[5, 6], [5, 6], [6, 5]], [[1, 2], [3, 4], [5, 6]]
    for item, brand, mood in zip(items, brands, moods, strict=True):
        levels.learn(lists([[0, 1]], item_id=[item], brand=[brand], mood=[mood]))
    assert set(levels.readers()) == {"item_id", "brand"}


def test_histories_are_those_strictly_before_the_requests(
    log: LogMeasures, parts: dict[str, Impressions]
) -> None:
    for name, split in log.splits.items():
        lengths = parts[name].request["history_length"]
        found = split.histories
        assert found.miscounted == 0
        assert found.lengths.counts[0] == (lengths == 0).sum()
        assert found.ages.sum() == (lengths > 0).sum()
        assert found.same_moment == 0
        label, rank = (parts[name].candidate[n] for n in ("label", "history_rank"))
        assert found.clicked_last == ((label == 1) & (rank == 0)).sum()


def test_behaviours_of_the_millisecond_of_a_request_are_counted_apart(
    tiny_dataset: Path, parts: dict[str, Impressions]
) -> None:
    store, test = open_history(tiny_dataset, load_schema(tiny_dataset)), parts["test"]
    before = test.request["timestamp"]
    behaviours, slices = store.recent(test.request["user_id"], before)
    known = slices.lengths > 0
    moved = before.copy()
    moved[known] = behaviours.timestamp[slices.stop[known] - 1]
    counts = []
    for shift in (0, 1):
        found = Histories(store)
        request = test.request | {"timestamp": moved - shift}
        found.add(replace(test, request=request), category=None)
        counts.append(found.same_moment)
    assert counts[0] == known.sum() > 2 * counts[1]


def test_clicks_over_time_add_up_to_the_split(log: LogMeasures) -> None:
    for name, split in log.schema.splits.items():
        time = log.splits[name].time
        assert (time.impressions.sum(), time.clicks.sum()) == (split.impressions, split.clicks)


def test_bins_are_as_fine_as_can_be_seen(log: LogMeasures) -> None:
    def bins(days: float) -> tuple[str, int]:
        last = int(days * 86_400_000) + 1000
        split = log.schema.splits["train"].model_copy(
            update={"first_timestamp": 1000, "last_timestamp": last}
        )
        found = bins_of([split])
        assert found.of(np.array([1000, last])).tolist() == [0, found.number - 1]
        return found.unit, found.number

    assert bins(1.5) == ("hour", 37)
    assert bins(60) == ("day", 61)
    assert bins(700) == ("week", 101)
    assert bins(7000)[1] <= 201


def test_the_starter_says_which_minimum_counts_are_marked(
    tiny_dataset: Path, log: LogMeasures
) -> None:
    starter = starter_minimum_counts(tiny_dataset)
    assert starter is not None
    assert log.min_count("item") == starter.get("item", VocabularyConfig().min_count)
