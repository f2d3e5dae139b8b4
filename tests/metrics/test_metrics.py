"""Reports against hand-computed values and brute force, and under reordering and spooling."""

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from cdp_torchrec.metrics import ImpressionMetrics
from cdp_torchrec.metrics.ranks import Ranks
from cdp_torchrec.metrics.rows import row_dtype
from cdp_torchrec.metrics.spool import Spool, meet
from tests.metrics.sample import STRATA, brute_force_groups, by_hand, evaluate, make_log, select


def test_every_metric_of_a_small_log_is_what_one_computes_by_hand() -> None:
    report = evaluate(by_hand())
    right = (0.875, 0.75, 0.25, 0.875, 0.375, 0.5, 0.25, 0.625)
    entropy = -(3 / 8 * log(3 / 8) + 5 / 8 * log(5 / 8))
    expected = {
        "auc": (5 + 1.5 + 3) / 15,
        "uauc": (4.5 / 6 + 0) / 2,
        "wuauc": (5 * 4.5 / 6 + 2 * 0) / 7,
        "gauc": (3 * 1.5 / 2 + 2 * 0) / 5,
        "gauc_unweighted": (1.5 / 2 + 0) / 2,
        "log_loss": -sum(map(log, right)) / 8,
        "ne": -sum(map(log, right)) / 8 / entropy,
        "calibration": 3.75 / 3,
        "ctr": 3 / 8,
        "num_impressions": 8,
        "num_clicks": 3,
        "num_users": 3,
        "users_kept": 2,
        "user_coverage": 2 / 3,
        "user_impression_coverage": 7 / 8,
        "num_requests": 4,
        "requests_kept": 2,
        "request_coverage": 2 / 4,
        "request_impression_coverage": 5 / 8,
    }
    values = report.to_dict()
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-14)


def test_report_equals_brute_force() -> None:
    impressions = make_log()
    report = evaluate(impressions)
    users = brute_force_groups(impressions, impressions.user_id)
    requests = brute_force_groups(impressions, impressions.request_id)
    _, user_size, user_auc = zip(*users, strict=True)
    _, request_size, request_auc = zip(*requests, strict=True)
    expected = {
        "auc": roc_auc_score(impressions.labels, impressions.probability),
        "uauc": np.mean(user_auc),
        "wuauc": np.average(user_auc, weights=user_size),
        "gauc": np.average(request_auc, weights=request_size),
        "gauc_unweighted": np.mean(request_auc),
        "calibration": impressions.probability.sum(dtype=float) / impressions.labels.sum(),
        "users_kept": len(users),
        "requests_kept": len(requests),
        "request_impression_coverage": sum(request_size) / len(impressions.labels),
    }
    values = report.to_dict()
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_log_loss_equals_scikit_learn_where_no_probability_is_0_or_1() -> None:
    impressions = make_log()
    impressions.probability = np.clip(impressions.probability, 0.01, 0.99)
    expected = log_loss(impressions.labels, impressions.probability.astype(float))
    assert evaluate(impressions).log_loss == pytest.approx(expected, rel=1e-12)


def test_log_loss_of_a_saturated_wrong_probability_is_that_of_float32_rounding() -> None:
    impressions = select(by_hand(), np.array([0, 1]))
    impressions.probability = np.array([0.0, 1.0], np.float32)
    assert evaluate(impressions).log_loss == pytest.approx(25 * log(2))


def test_stratum_reports_what_an_evaluation_of_its_impressions_alone_reports() -> None:
    impressions = make_log()
    report = evaluate(impressions)
    for name, labels in STRATA.items():
        for index, label in enumerate(labels):
            only = evaluate(select(impressions, impressions.strata[name] == index))
            alone, stratum = only.to_dict(), vars(report.strata[name][label])
            assert stratum == pytest.approx({key: alone[key] for key in stratum}, rel=1e-12)
            replicates = report.strata_replicates[name][label]
            assert replicates == pytest.approx(only.replicates["gauc"], rel=1e-12, nan_ok=True)


def test_result_does_not_depend_on_order_or_batches_to_the_last_bit() -> None:
    impressions = make_log()
    order = np.random.default_rng(2).permutation(len(impressions.labels))
    expected = evaluate(impressions)
    for batch_size in (77, 1200):
        report = evaluate(impressions, order=order, batch_size=batch_size)
        assert report.to_dict() == expected.to_dict()
        for name, values in expected.replicates.items():
            assert (report.replicates[name] == values).all()


@pytest.mark.parametrize("scores", ["as they are", "constant", "nearly constant"])
@pytest.mark.parametrize("max_rows_in_memory", [5, 500, 1199])
def test_spooling_changes_no_bit(scores: str, max_rows_in_memory: int, tmp_path: Path) -> None:
    impressions = make_log()
    if scores != "as they are":
        spread = 0.0 if scores == "constant" else 1e-6
        impressions.probability = 0.5 + spread * impressions.probability
        impressions.probability = impressions.probability.astype(np.float32)
    expected = evaluate(impressions, num_bootstrap=3)
    report = evaluate(
        impressions, num_bootstrap=3, max_rows_in_memory=max_rows_in_memory, spool_dir=tmp_path
    )
    assert report.to_dict() == expected.to_dict()


def test_spool_directory_exists_only_as_long_as_it_is_needed(tmp_path: Path) -> None:
    impressions = by_hand()
    metrics = ImpressionMetrics(max_rows_in_memory=4, spool_dir=tmp_path)
    columns = ("probability", "labels", "user_id", "request_id")
    for half in (slice(0, 4), slice(4, 8)):
        batch: dict[str, Any] = {
            name: torch.from_numpy(getattr(impressions, name)[half]) for name in columns
        }
        metrics.update(**batch)
    assert len(list(tmp_path.glob("*/partition-*"))) == 3
    first = metrics.compute(num_bootstrap=0)
    assert metrics.compute(num_bootstrap=0).to_dict() == first.to_dict()
    assert len(list(tmp_path.iterdir())) == 1
    del metrics
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spool, "_file", lambda self, partition: Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device") as caught:
        evaluate(by_hand(), max_rows_in_memory=4, spool_dir=tmp_path)
    assert f"while spooling impressions to {tmp_path}" in caught.value.__notes__[0]


def test_impressions_meet_in_blocks_within_the_bound() -> None:
    random = np.random.default_rng(3)
    partition = random.integers(0, 64, 10_000).astype(np.uint16)
    rows = np.zeros(10_000, row_dtype(1))
    rows["request"] = np.arange(10_000)
    spool = Spool(dtype=rows.dtype, num_partitions=64, max_rows_in_memory=1000, directory=None)
    spool.append(rows, partition)
    blocks = [block["request"] for block in meet(spool, Ranks())]
    assert max(map(len, blocks)) < 1000 + 2 * spool.counts.max()
    assert sorted(np.concatenate(blocks)) == list(range(10_000))
    of_partition = [set(partition[block]) for block in blocks]
    assert sum(map(len, of_partition)) == 64


def test_negative_zero_probability_ties_with_zero() -> None:
    impressions = select(by_hand(), np.array([0, 1]))
    impressions.probability = np.array([-0.0, 0.0], np.float32)
    report = evaluate(impressions)
    assert (report.auc, report.gauc) == (0.5, 0.5)


def test_padding_is_dropped_unseen() -> None:
    metrics = ImpressionMetrics()
    metrics.update(
        probability=torch.tensor([0.9, float("nan"), 0.1]),
        labels=torch.tensor([1.0, 7.0, 0.0]),
        user_id=torch.tensor([1, 1, 1]),
        request_id=torch.tensor([5, 5, 5]),
        weights=torch.tensor([1.0, 0.0, 1.0]),
    )
    report = metrics.compute(num_bootstrap=0)
    assert (report.num_impressions, report.auc) == (2, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"probability": torch.tensor([0.5, float("nan"), 1.5])},
            r"probability: 2 of 3 values are NaN or outside \[0, 1\]: nan at 1, 1.5 at 2",
        ),
        ({"probability": torch.zeros(3, dtype=torch.float64)}, "expected float32"),
        ({"labels": torch.tensor([0, -1, 1])}, "labels: 1 of 3 .* neither 0 nor 1: -1 at 1"),
        ({"weights": torch.tensor([0.5, 1, 1])}, "weights: 1 of 3 .* neither 0 nor 1: 0.5 at 0"),
        ({"user_id": torch.zeros(2, dtype=torch.int64)}, "vectors of one length"),
        ({"labels": torch.zeros(3, 1)}, r"vectors of one length, .*'labels': \(3, 1\)"),
        ({"request_id": torch.zeros(3)}, "request_id: expected integers"),
        ({"strata": {"device": torch.zeros(3)}}, r"expected \['size'\], found \['device'\]"),
        ({"strata": {"size": torch.tensor([0, 2, 1])}}, r"outside 0 .. 1: 2 at 1"),
    ],
)
def test_bad_update_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "probability": torch.tensor([0.1, 0.2, 0.3]),
        "labels": torch.tensor([0, 1, 0]),
        "user_id": torch.tensor([1, 1, 2]),
        "request_id": torch.tensor([1, 1, 2]),
        "strata": {"size": torch.tensor([0, 1, 1])},
    }
    metrics = ImpressionMetrics(strata={"size": ("small", "large")})
    metrics.update(**good)
    with pytest.raises(ValueError, match=message):
        metrics.update(**{**good, **change})


def test_request_of_two_users_is_refused() -> None:
    impressions = by_hand()
    impressions.request_id[7] = 3
    with pytest.raises(
        ValueError, match=r"1 requests .* more than one user, for example request 3"
    ):
        evaluate(impressions)


def test_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no rank has seen any impression"):
        ImpressionMetrics().compute()


def test_undefined_values_are_null_in_json_and_a_dash_in_the_table() -> None:
    report = evaluate(select(by_hand(), np.array([3, 4])))
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["auc"] is None
    assert values["auc_interval"] == [None, None]
    assert values["calibration"] is None
    assert values["strata"]["history_length"]["21+"]["log_loss"] is None
    assert values["log_loss"] == pytest.approx(-(log(0.875) + log(0.375)) / 2)
    line = next(line for line in report.table().splitlines() if line.startswith("AUC"))
    assert line.split()[:3] == ["AUC", "-", "-"]


def test_table_shows_values_intervals_coverage_and_strata() -> None:
    report = evaluate(by_hand())
    lines = report.table().splitlines()
    assert lines[0].split("  ")[-1] == "over"
    gauc = next(line for line in lines if line.startswith("GAUC "))
    assert "0.4500" in gauc and "2 of 4 requests, 62.5% of the impressions" in gauc
    assert f"[{report.gauc_interval.low:.4f}, {report.gauc_interval.high:.4f}]" in gauc
    stratum = next(line for line in lines if line.startswith("candidate_in_history  no"))
    assert stratum.split()[2:4] == ["6", "1"]
    assert all(line.isascii() for line in lines)


def test_bad_options_are_refused() -> None:
    options = "num_bootstrap must be at least 0 and confidence between"
    with pytest.raises(ValueError, match=options):
        ImpressionMetrics().compute(num_bootstrap=-1)
    with pytest.raises(ValueError, match=options):
        ImpressionMetrics().compute(confidence=1.0)
    with pytest.raises(ValueError, match="max_rows_in_memory must be positive, found 0"):
        ImpressionMetrics(max_rows_in_memory=0)
    with pytest.raises(ValueError, match="strata 'size': expected 1 to 127 distinct labels"):
        ImpressionMetrics(strata={"size": ("small", "small")})
