"""What a cell costs is counted from its own run."""

import json
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.compare.measure import requests_alone, training_speed
from cdp_torchrec.data.loader import Share
from cdp_torchrec.experiment import open_data
from tests.compare.conftest import MakeTable


def test_requests_alone_fill_their_batch_with_all_their_candidates() -> None:
    counts = np.random.default_rng(0).choice([2, 3, 5, 7], 500)
    size, steps = requests_alone(counts)
    owner = np.repeat(np.arange(500), counts)
    whole = {
        step
        for step in range(len(owner) // size)
        if len(set(owner[step * size : (step + 1) * size])) == 1
        and counts[owner[step * size]] == size
    }
    assert size == sorted(counts)[250]
    assert set(steps) == whole
    assert len(whole) > 5


def test_where_no_typical_request_is_alone_the_first_one_is_timed() -> None:
    size, steps = requests_alone(np.array([2, 3, 3, 3]))
    assert (size, steps.tolist()) == (2, [0])


def test_a_timed_batch_is_one_request_without_padding(make_table: MakeTable) -> None:
    config = make_table().any_config("tiny")
    test = open_data(config, share=Share(0, 1), global_batch_size=8).test
    batch = test[3]
    assert batch.weights.tolist() == [1.0] * 8
    assert len(set(batch.request_id.tolist())) == 1
    assert test[4].request_id[0] != batch.request_id[0]


def test_training_time_counts_repeated_steps_once(tmp_path: Path) -> None:
    lines = [(10, 100.0), (20, 200.0), (30, 50.0), (20, 400.0), (25, 100.0), (30, 100.0)]
    records = [{"kind": "train", "step": step, "impressions_per_s": speed} for step, speed in lines]
    records.insert(2, {"kind": "validation", "step": 20, "gauc": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    seconds, speed = training_speed(path, global_batch_size=50)
    assert seconds == pytest.approx(10 * 50 / 100 + 10 * 50 / 400 + 5 * 50 / 100 + 5 * 50 / 100)
    assert speed == 100.0
