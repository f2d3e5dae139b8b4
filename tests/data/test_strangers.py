"""Another user's history, that training offers for each request, whatever shares its batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.history.strangers import draw_strangers
from cdp_torchrec.data.loader import Share, TrainBatches
from tests.data.test_assemble import make_assembler, make_inputs, make_order, raw_history

LOOKUP = HistoryLookup(recent=True, recent_length=5, stranger=True)


def strangers_of(batch: Batch) -> dict[int, list[tuple[int, float]]]:
    """Items and ages of the stranger of each request."""
    index, found = batch.stranger, {}
    assert index is not None and batch.sequence is not None
    rows = batch.sequence["stranger_item"].values()
    # One out-of-vocabulary row, and every id kept: row = code + 1.
    assert torch.equal(rows - 1, index.item_id)
    for place in batch.weights.nonzero().flatten().tolist():
        own = index.owner == index.sequence[place]
        behaviours = zip(index.item_id[own].tolist(), index.age[own].tolist(), strict=True)
        found[int(batch.request_id[place])] = [*behaviours]
    return found


def test_a_stranger_is_another_user_with_a_past_at_the_time_of_the_request(
    tiny_dataset: Path,
) -> None:
    """Fails where a stranger's behaviours after the request are offered."""
    order, history = make_order(tiny_dataset, seed=2), raw_history(tiny_dataset)
    impressions = order.take(0, 300, 364)
    assembler = make_assembler(tiny_dataset, batch_size=64, history=LOOKUP)
    found = strangers_of(assembler.assemble(impressions, epoch=0))
    requests = impressions.request
    pasts = {}
    for request, user, before in zip(
        requests["request_id"], requests["user_id"], requests["timestamp"], strict=True
    ):
        pasts[int(request)] = [
            [(item, (before - time) / 1000) for time, _, item in past if time < before][-5:]
            for other, past in history.items()
            if other != user
        ]
    met = 0
    for request, behaviours in found.items():
        close = [(item, pytest.approx(age)) for item, age in behaviours]
        assert not behaviours or close in pasts[request]
        met += bool(behaviours)
    assert met > 0.8 * len(found)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_stranger_is_the_same_for_any_ranks_and_batches(
    tiny_dataset: Path, world_size: int
) -> None:
    order = make_order(tiny_dataset, seed=4)

    def found(size: int, ranks: int) -> list[tuple[int, list[tuple[int, float]]]]:
        strangers = {}
        for rank in range(ranks):
            assembler = make_assembler(tiny_dataset, batch_size=size, history=LOOKUP)
            share = Share(rank, ranks)
            batches = TrainBatches(order, assembler, global_batch_size=size * ranks, share=share)
            strangers |= strangers_of(batches[0])
        return sorted(strangers.items())

    assert found(64 // world_size, world_size) == found(64, 1)


def test_every_epoch_draws_anew_and_evaluation_nobody(tiny_dataset: Path) -> None:
    impressions = make_order(tiny_dataset).take(0, 0, 64)
    assembler = make_assembler(tiny_dataset, batch_size=64, history=LOOKUP)
    batches = [assembler.assemble(impressions, epoch=epoch) for epoch in (0, 0, 1)]
    first, again, second = (strangers_of(batch) for batch in batches)
    assert first == again != second
    batch = assembler.assemble(impressions, epoch=None)
    assert batch.stranger is None and batch.sequence is not None
    assert not len(batch.sequence["stranger_item"].values())


def test_where_nobody_else_has_a_past_there_is_no_stranger(tiny_dataset: Path) -> None:
    inputs = make_inputs(tiny_dataset, batch_size=64, history=LOOKUP)
    store = inputs._histories._store
    assert isinstance(store, HistoryStore)
    user, nothing = np.array([1, 2]), np.zeros(2, dtype=np.int64)
    settings = {"request_id": np.array([5, 6]), "draw": 1}
    num_users = inputs.layout.num_users
    early = draw_strangers(store, user=user, before=nothing, num_users=num_users, **settings)
    late = draw_strangers(store, user=user, before=nothing + 2**62, num_users=1, **settings)
    assert early.tolist() == [0, 0]
    assert late.tolist() == [0, 1]
