"""Behaviours that requests bring are read as stored ones are."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import DataConfig, HistoryConfig
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.store import BehaviourSource
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.serving import inline_histories
from cdp_torchrec.serving.inline_histories import EncodedHistory, InlineHistories
from cdp_torchrec.serving.inputs import InputBuilder

LOOKUP = HistoryLookup(pool_segments=(1, 3), whole=True, gated=True, recent=True)
CLUSTERED = replace(LOOKUP, clustered=True)


@pytest.mark.parametrize("lookup", [LOOKUP, CLUSTERED], ids=["behaviours", "clusters"])
def test_sums_counts_and_sequences_are_those_of_the_store_beyond_what_a_sequence_keeps(
    tiny_dataset: Path, lookup: HistoryLookup
) -> None:
    by_age = HistoryConfig(count_ages=(0.5, 7.5))
    reader = DatasetReader(DataConfig(dir=tiny_dataset, history=by_age))
    impressions = reader.impressions("train").take(0, 300, 332)
    histories = [_of_user(reader.store, u) for u in impressions.request["user_id"]]
    impressions.request["owner"] = np.arange(len(histories))
    brought = InlineHistories(histories, clustered=lookup.clustered)
    sources = ((reader.store, "user_id"), (brought, "owner"))
    stored, inline = (
        BatchAssembler(
            InputAssembler(
                reader.layout(lookup, history_counts=True),
                source,
                batch_size=40,
                max_history_length=4,
                seed=0,
                history_owner=owner,
            )
        ).assemble(impressions, epoch=None)
        for source, owner in sources
    )
    assert stored.history_counts[:, 0].max() > 4 and stored.history_counts[:, -1].sum() > 0
    assert torch.equal(stored.history_counts, inline.history_counts)
    assert stored.sequence is not None and inline.sequence is not None
    assert torch.equal(stored.sequence.lengths(), inline.sequence.lengths())
    assert torch.equal(stored.sequence.values(), inline.sequence.values())
    assert stored.recent is not None and inline.recent is not None
    assert torch.equal(stored.recent.age, inline.recent.age)
    sizes = [index.size for index in (stored.recent, inline.recent) if index.size is not None]
    assert len(sizes) == 2 * lookup.clustered
    assert not sizes or torch.equal(*sizes)


def test_an_order_or_clusters_that_nobody_asks_for_are_not_made() -> None:
    codes = np.array([3, 1, 2])
    history = EncodedHistory(codes, 1000 * codes, category=codes, action=None)
    user, before = np.zeros(1, dtype=np.int64), np.array([10_000])
    ordered = mock.patch.object(
        InlineHistories, "_ordered", autospec=True, side_effect=InlineHistories._ordered
    )
    with ordered as made, mock.patch(f"{inline_histories.__name__}.assign_clusters") as assigned:
        brought = InlineHistories([history], clustered=False)
        assert made.call_count == 0
        for _ in range(2):
            brought.gated(user, codes[:1], before)
            assert made.call_count == 1
        for _ in range(2):
            brought.recent(user, before)
            assert made.call_count == 2
        assigned.assert_not_called()
        InlineHistories([history], clustered=True).recent(user, before)
        assigned.assert_called_once()


@pytest.mark.parametrize("lookup", [LOOKUP, CLUSTERED], ids=["behaviours", "clusters"])
def test_a_model_is_served_with_clusters_if_it_reads_them(
    tiny_dataset: Path, lookup: HistoryLookup
) -> None:
    reader = DatasetReader(DataConfig(dir=tiny_dataset))
    builder = InputBuilder(
        reader.layout(lookup, history_counts=True),
        mock.Mock(),
        reader.schema.history,
        max_history_length=4,
        history_store=None,
    )
    for history in (_of_user(reader.store, 1), None):
        source, owner = builder._histories([mock.Mock(history=history)])
        behaviours, slices = source.recent(owner, np.array([2**62]))
        assert slices.lengths[0] == (0 if history is None else len(history.item))
        assert (behaviours.cluster is not None) == lookup.clustered


def _of_user(store: BehaviourSource, user: int) -> EncodedHistory:
    """All behaviours of a user, the latest first."""
    forever = np.array([2**62])
    behaviours, slices = store.recent(np.array([user]), forever)
    rows = slices.rows()[::-1]
    assert behaviours.category is not None
    return EncodedHistory(
        behaviours.item[rows].astype(np.int64),
        behaviours.timestamp[rows],
        category=behaviours.category[rows].astype(np.int64),
        action=None if behaviours.action is None else behaviours.action[rows].astype(np.int64),
    )
