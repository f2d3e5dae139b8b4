"""The time of day of behaviours in a batch, as a scan of the log finds it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
import torch

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.layout import DAYPART_KEY
from tests.data.test_assemble import bags_of, make_inputs, make_order, raw_history


def daypart(timestamp_ms: int, dayparts: int) -> int:
    """By the calendar."""
    moment = datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
    second = 3600 * moment.hour + 60 * moment.minute + moment.second
    return dayparts * second // 86_400


@pytest.mark.parametrize("num_impressions", [2, 64])  # few are counted by another way
def test_the_gated_history_is_also_summed_by_the_time_of_day(
    tiny_dataset: Path, num_impressions: int
) -> None:
    order, history = make_order(tiny_dataset, seed=2), raw_history(tiny_dataset)
    impressions = order.take(0, 300, 300 + num_impressions)
    maker = make_inputs(tiny_dataset, batch_size=64, dayparts=5)
    batch = BatchAssembler(maker).assemble(impressions, epoch=0)
    found = [bags_of(batch, f"{DAYPART_KEY}_{part}") for part in range(5)]
    filled = set()
    for place, request in enumerate(impressions.request_index):
        user = int(impressions.request["user_id"][request])
        before = int(impressions.request["timestamp"][request])
        category = int(impressions.candidate["category_id"][place])
        gated = [(t, i) for t, c, i in history[user] if t < before and c == category]
        expected = [[i for t, i in gated if daypart(t, 5) == part] for part in range(5)]
        group = int(batch.pool_index[place])
        # One out-of-vocabulary row, and every id kept: row = code + 1.
        assert [[row - 1 for row in bags[group]] for bags in found] == expected
        filled |= {part for part in range(5) if expected[part]}
    assert num_impressions < 64 or filled == set(range(5))
    keys = [feature.key for feature in maker.layout.bags]
    columns = [keys.index(f"{DAYPART_KEY}_{part}") for part in range(5)]
    lengths = torch.tensor([[len(bags[group]) for bags in found] for group in range(64)])
    assert torch.equal(batch.bag_lengths[:, columns], lengths.float())


@pytest.mark.parametrize("slot", ["gated", "recent"])
def test_sequences_tell_the_part_of_the_day_of_each_behaviour(
    tiny_dataset: Path, slot: Literal["gated", "recent"]
) -> None:
    order = make_order(tiny_dataset, seed=2)
    lookup = HistoryLookup(gated=slot == "gated", recent=slot == "recent")
    maker = make_inputs(tiny_dataset, batch_size=64, history=lookup, dayparts=3)
    impressions = order.take(0, 300, 364)
    index = getattr(BatchAssembler(maker).assemble(impressions, epoch=0), slot)
    assert index.attributes.shape == (len(index.item_id), maker.layout.num_behaviour_values)
    owner = impressions.request_index[index.first_impression[index.owner].numpy()]
    moment = impressions.request["timestamp"][owner] - 1000 * index.age.double().numpy()
    # An age is rounded in float32, so a behaviour may seem to lie beyond an edge.
    part = [daypart(int(ms), 3) for ms in moment]
    assert index.attributes.sum(dim=1).unique().tolist() == [1.0]
    assert (index.attributes.argmax(dim=1).numpy() == part).mean() > 0.999
    assert len(set(part)) == 3
