"""A log whose rows are in order and that is wrong as a whole is refused, or doubted in words."""

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from cdp_torchrec.data.clocks import Clock
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.day_checks import DAY_CHECKS
from cdp_torchrec.data.plausibility import check_plausible, judge
from cdp_torchrec.data.plausibility_checks import CHECKS, Check
from cdp_torchrec.data.prepare.leaks import LeakMeter
from cdp_torchrec.data.prepare.raw_ids import similar_ids
from cdp_torchrec.data.prepare.split_figures import Lengths, Repeats, digests_of_requests
from cdp_torchrec.data.prepare.staging import build_dataset
from cdp_torchrec.data.prepare.summarise import summarise
from cdp_torchrec.data.schema import DatasetError, Feature, load_schema
from cdp_torchrec.data.summary import SUMMARY, Figure, Summary, load_summary
from tests.data.staged_log import SPEC, Rows, behaviour, request, stage

T0 = 1_700_000_000_000
MINUTE = 60_000
REQUESTS, TEST_FROM = 60, T0 + 40 * MINUTE
NUMBER = Feature(name="price", role="item", level="candidate", kind="number")
LOG_SPEC = replace(SPEC, test_from=TEST_FROM)


def sane_log() -> tuple[Rows, Rows]:
    """60 requests of 5 candidates with chance clicks; 120 behaviours before and among them."""
    rng = np.random.default_rng(0)
    requests = []
    for n in range(REQUESTS):
        items = rng.permutation(12)[:5]
        requests.append(
            request(
                n,
                user_id=f"u{n % 9}",
                timestamp=T0 + n * MINUTE,
                words=[f"w{rng.integers(5)}"],
                topic=f"c{rng.integers(3)}",
                budget=float(rng.integers(9)),
                item_id=[f"i{item}" for item in items],
                category_id=[f"c{item % 3}" for item in items],
                price=[float(price) for price in rng.normal(size=5)],
                label=[int(place == rng.integers(5)) for place in range(5)],
            )
        )
    behaviours = [
        behaviour(
            user_id=f"u{n % 9}",
            item=f"i{item}",
            category=f"c{item % 3}",
            timestamp=T0 + (n - 80) * MINUTE,
        )
        for n, item in enumerate(rng.integers(12, size=120))
    ]
    return requests, behaviours


def behaviours_in_seconds(requests: Rows, behaviours: Rows) -> None:
    for row in behaviours:
        row["timestamp"] //= 1000


def some_behaviours_in_microseconds(requests: Rows, behaviours: Rows) -> None:
    for row in behaviours[::10]:
        row["timestamp"] *= 1000


def behaviours_a_year_late(requests: Rows, behaviours: Rows) -> None:
    for row in behaviours:
        row["timestamp"] += 365 * 24 * 60 * MINUTE


def behaviours_of_an_older_log(requests: Rows, behaviours: Rows) -> None:
    for row in behaviours:
        row["timestamp"] -= 60 * MINUTE


def ids_written_otherwise(requests: Rows, behaviours: Rows) -> None:
    for row in requests:
        row["user_id"] = row["user_id"][1:]
    for row in behaviours:
        row["user_id"] = f"00{row['user_id'][1:]}"
        row["item"] = row["item"].upper()
        row["category"] = f" {row['category']}"


def clicks_only_and_one_user(requests: Rows, behaviours: Rows) -> None:
    for row in requests:
        row["label"] = [1] * 5
    for row in behaviours[: len(behaviours) * 19 // 20]:
        row["user_id"] = "u0"


def leaks_and_repeats(requests: Rows, behaviours: Rows) -> None:
    for n, row in enumerate(requests):
        row["label"] = [int(place == n % 5) for place in range(5)]
        row["topic"] = f"t{n % 5}"
        row["category_id"] = [f"t{place}" for place in range(5)]
        row["price"] = [0.001 * n - label for label in row["label"]]
        row["item_id"] = [f"i{place}-{label}" for place, label in enumerate(row["label"])]
        row["budget"] = None if row["timestamp"] >= TEST_FROM else 5.0 + n
    requests += [row | {"request_id": f"again {row['request_id']}"} for row in requests]


def doubtful(requests: Rows, behaviours: Rows) -> None:
    """Nothing that no sane log may have."""
    for n, row in enumerate(requests):
        row["user_id"] = f"u{n}"
        row["label"] = [1, 0, 0, 0, 0]
        row["budget"] = 9.99
        row["price"] = [float((n + place) % 5) for place in range(5)]
        row["price"][2] = -9e15 if n == 3 else row["price"][2]
        row["words"] = ["new" if row["timestamp"] >= TEST_FROM else "old"]
    for n, row in enumerate(behaviours):
        row["user_id"] = f"u{n % REQUESTS}"
    behaviours[0]["timestamp"] = 0


REFUSED: dict[Callable[[Rows, Rows], None], tuple[str, ...]] = {
    behaviours_in_seconds: (
        "100.00% of the 120 timestamps of behaviours are not in milliseconds",
        "in seconds is 2023-11-14 2",
        "the last behaviour is 0.001 times that of the last request",
    ),
    some_behaviours_in_microseconds: (
        "is no time from 1970 to 2200 in milliseconds: 1699995200000000",
    ),
    behaviours_a_year_late: (
        "100.0% of the 120 behaviours happened after the last request",
        "100.00% of the requests of the test split have no behaviour before them",
    ),
    ids_written_otherwise: (
        "0.00% of the requests of the test split are of a user who has behaviours",
        " and '00",
        "0.00% of the 120 behaviours are on an item that is a candidate anywhere",
        "0.00% of the 120 behaviours that have a category are in one that a candidate has",
        "ids of entity 'user' differ from another one in leading zeros, blanks or '.0' only",
    ),
    clicks_only_and_one_user: (
        "100.00% of the 200 impressions of the train split are clicks",
        "100.00% of the 100 impressions of the test split are clicks",
        "of the 120 behaviours are of one user, 'u0'",
    ),
    leaks_and_repeats: (
        "price alone tells clicks from other impressions with AUC 1.0000",
        "item_id alone tells clicks from other impressions with AUC 1.0000",
        "topic = category_id alone tells clicks from other impressions with AUC 1.0000",
        "50.00% of the 80 requests of the train split repeat another one",
        "'budget' is missing in 100.0% more of the test split",
    ),
}


def prepare(directory: Path, spoil: Callable[[Rows, Rows], None] | None) -> tuple[Path, str]:
    """The dataset, and what was printed."""
    requests, behaviours = sane_log()
    if spoil:
        spoil(requests, behaviours)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        build_dataset(
            stage(directory / "staging", requests, behaviours), directory / "data", LOG_SPEC
        )
    return directory / "data", said.getvalue()


@pytest.fixture(scope="module")
def sane(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return prepare(tmp_path_factory.mktemp("sane"), None)


def test_a_store_that_is_older_than_its_requests_is_doubted(tmp_path: Path) -> None:
    _, said = prepare(tmp_path, behaviours_of_an_older_log)
    # 59 minutes of requests; the last behaviour is 80 minutes before the last of them.
    assert "lies before the last request by 136% of the time" in " ".join(said.split())


def test_a_sane_log_passes_and_is_summarised(sane: tuple[Path, str]) -> None:
    dataset, said = sane
    assert f"plausible in all {len(CHECKS)} checks" in said
    cells = {line[:32].strip(): line[32:].split() for line in said.splitlines()}
    assert cells["number"] == ["40", "20", "120"]
    assert cells["impressions"] == ["200", "100", "-"]
    assert cells["user has behaviours"] == ["100.00%", "100.00%", "-"]
    assert cells["first"][:2] == ["2023-11-14", "22:13:20"]
    assert check_plausible(DataConfig(dir=dataset)) == []


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_no_sane_log_looks_like_is_refused_and_nothing_is_left(
    tmp_path: Path, spoil: Callable[[Rows, Rows], None]
) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare(tmp_path, spoil)
    for part in REFUSED[spoil]:
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["staging"]


def test_a_log_that_was_converted_is_named_by_its_own_place(tmp_path: Path) -> None:
    requests, behaviours = sane_log()
    behaviours_in_seconds(requests, behaviours)
    staging = stage(tmp_path / "staging", requests, behaviours)
    with pytest.raises(DatasetError, match=r"^their/log: no sane log looks like this one"):
        build_dataset(staging, tmp_path / "data", LOG_SPEC, log=Path("their/log"))


def test_what_a_sane_log_seldom_has_is_a_warning_that_training_repeats(tmp_path: Path) -> None:
    dataset, said = prepare(tmp_path, doubtful)
    doubts = check_plausible(DataConfig(dir=dataset))
    for part in (
        "of behaviours lie before the year 1990",
        "the place in the candidate list alone tells clicks",
        "the training split have one request: is user_id the id of a session?",
        "'budget' has the same value",
        "100.0% of the 20 values of 'words' in the test split never occur in training",
        "one value of 'price', -9e+15, makes",
        "'price' has values up to 9e+15",
    ):
        assert any(part in doubt for doubt in doubts), (part, doubts)
    said = " ".join(said.split())
    assert all(f"warning: {doubt}" in said for doubt in doubts)
    excluded = check_plausible(DataConfig(dir=dataset, exclude_features=("price",)))
    assert {d for d in doubts if "price" in d} == set(doubts) - set(excluded)


def test_the_stored_figures_are_those_of_the_files(sane: tuple[Path, str]) -> None:
    schema = load_schema(sane[0])
    assert load_summary(sane[0], schema) == summarise(sane[0], schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing, another release wrote this dataset"),
        ("version = ", "unreadable"),
        ("version = 9", "version 9, this release reads version 1"),
        ("version = 1\nfingerprint = 'x'\nfigures = 3", "figures is damaged"),
        ("version = 1\nfingerprint = 'x'\n[figures]", "does not belong to the schema.toml"),
    ],
)
def test_figures_that_cannot_be_read_stop_a_training(
    tmp_path: Path, sane: tuple[Path, str], text: str | None, message: str
) -> None:
    shutil.copy(sane[0] / "schema.toml", tmp_path)
    if text is not None:
        (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(DatasetError, match=f"{SUMMARY}.*{message}.*prepare the dataset again"):
        check_plausible(DataConfig(dir=tmp_path))


def test_every_figure_of_a_check_is_measured(sane: tuple[Path, str]) -> None:
    measured = set(load_summary(sane[0], load_schema(sane[0])).figures)
    assert {check.figure for check in CHECKS} - measured == {"no_gate_feature"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.figure)
def test_a_check_speaks_beyond_its_thresholds_only(check) -> None:
    def said(value: float, count: int) -> list[str]:
        figures = {check.figure: {(check.only or ("price",))[0]: Figure(value, count, "x")}}
        with mock.patch("time.time", return_value=0.0):
            findings = judge(Summary(fingerprint="", figures=figures))
        assert all("{" not in finding.text for finding in findings)
        return [finding.level for finding in findings]

    limits = {
        "warning": (check.warn_below, check.warn_above),
        "error": (check.error_below, check.error_above),
    }
    for level, (low, high) in limits.items():
        for limit, beyond in (
            (low, np.nextafter(low, -np.inf)),
            (high, np.nextafter(high, np.inf)),
        ):
            if np.isfinite(limit):
                assert level in said(float(beyond), 10**6)
                assert level not in said(limit, 10**6)
                assert said(float(beyond), check.at_least - 1) == []


@pytest.mark.parametrize("checks", [CHECKS, DAY_CHECKS], ids=["log", "day"])
def test_the_future_is_what_comes_after_the_judgement_however_old_the_process_is(
    checks: Sequence[Check],
) -> None:
    last_s, day_s = 4_000_000_000, 24 * 3600  # long after this process began
    figures = {"last_time": {"test": Figure(1000.0 * last_s, 9, "x")}}

    def said(now_s: float) -> list[str]:
        with mock.patch("time.time", return_value=now_s):
            found = judge(Summary(fingerprint="", figures=figures), checks=checks)
        return [f"{finding.level}: {finding.text}" for finding in found]

    assert said(last_s - day_s) == []
    [doubt] = said(last_s - 2 * day_s)
    assert doubt.startswith("warning: ") and "lies in the future: 2096-10-02" in doubt


@pytest.mark.parametrize(("unit", "factor"), [("seconds", 1), ("micro", 10**6), ("nano", 10**9)])
def test_the_unit_of_a_clock_is_told(unit: str, factor: int) -> None:
    clock = Clock()
    clock.add(np.array([T0, T0 // 1000 * factor]))
    assert (clock.count, clock.wrong_unit, clock.before_1990, clock.after_2100) == (2, 1, 0, 0)
    assert unit in clock.example and "is 2023-11-14 22:13:20 UTC" in clock.example


def test_moments_outside_of_any_unit_are_counted() -> None:
    clock = Clock()
    clock.add(np.array([0, -(2**63), 86_400_000, T0, 2**63 - 1, 20_231_114_120_000]))
    assert (clock.wrong_unit, clock.before_1990, clock.after_2100) == (0, 3, 2)
    assert (clock.first, clock.last) == (-(2**63), 2**63 - 1)


def leak(column: np.ndarray, label: np.ndarray) -> float:
    meter = LeakMeter()
    meter.add({"x": column}, label, np.arange(len(label)) // 5)
    return meter.figures()["x"].value


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_leak_is_found_in_any_form_and_in_nothing_else(rate: float) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(4000) < rate).astype(np.int64)
    noise = rng.normal(scale=0.01, size=4000)
    for column in (
        label + noise,
        -label + noise,
        np.where(label == 1, 0.0, np.sign(noise)) + noise / 10,  # clicks lie in the middle
        np.where(label == 1, noise, np.nan),
        7 * label + rng.integers(7, size=4000),  # ids
    ):
        assert leak(column, label) > 0.999
    for column in (noise, np.arange(4000), rng.integers(30, size=4000), np.zeros(4000)):
        assert 0.45 < leak(column, label) < 0.55


def test_quantiles_of_lengths_are_those_of_the_lengths() -> None:
    lengths = np.random.default_rng(0).geometric(0.1, size=999)
    counted = Lengths()
    for part in np.split(lengths, [10, 500]):
        counted.add(part)
    for share in (0.5, 0.9):
        expected = np.quantile(lengths, share, method="inverted_cdf")
        assert counted.quantile(share) == Figure(expected, 999)


def test_ids_that_differ_in_zeros_and_blanks_only_are_found(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = ["7", "007", "7.0", " 7", "70", "x", "x ", "0", "00", "a7", "7.5"]
    (tmp_path / "vocabulary").mkdir()
    pq.write_table(pa.table({"raw": raw}), tmp_path / "vocabulary" / "user.parquet")
    assert similar_ids(tmp_path, "user") == Figure(8 / 11, 11, "'7', '007', '7.0'")


def test_repeated_requests_are_counted_exactly_and_of_very_many_in_a_sample() -> None:
    rng = np.random.default_rng(0)
    digests = rng.integers(-(2**62), 2**62, 40_000)
    log = rng.permutation(np.concatenate([digests, digests[:10_000], digests[:2_000]]))
    for most in (1 << 20, 60_000, 1_000):
        repeats = Repeats(most=most)
        for block in np.array_split(log, 50):
            repeats.add(block)
        exact = 12_000 / 52_000
        # Some 600 digests are left in the smallest sample.
        assert repeats.share() == pytest.approx(exact, abs=1e-12 if most > 40_000 else 0.08)
    assert Repeats().share() == 0.0


def test_equal_requests_have_one_digest_which_is_the_same_in_every_process() -> None:
    user, timestamp, lengths = np.array([1, 2, 1]), np.array([5, 5, 5]), np.array([2, 2, 2])
    item, label = np.array([3, 4, 3, 4, 3, 4]), np.array([0, 1, 0, 1, 0, 1])
    found = digests_of_requests(user, timestamp, item, label, lengths).tolist()
    assert found == [5409267177762625169, -5803197119080237576, 5409267177762625169]
