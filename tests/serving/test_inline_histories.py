"""Behaviours that requests bring are read as stored ones are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.data.history_store import BehaviourSource
from cdp_torchrec.data.model_inputs import InputAssembler
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.serving.inline_histories import EncodedHistory, InlineHistories

LOOKUP = HistoryLookup(pool_segments=(1, 3), whole=True, gated=True, recent=True)
CLUSTERED = replace(LOOKUP, clustered=True)


@pytest.mark.parametrize("lookup", [LOOKUP, CLUSTERED], ids=["behaviours", "clusters"])
def test_sums_counts_and_sequences_are_those_of_the_store_beyond_what_a_sequence_keeps(
    tiny_dataset: Path, lookup: HistoryLookup
) -> None:
    reader = DatasetReader(DataConfig(dir=tiny_dataset))
    impressions = reader.impressions("train").take(0, 300, 332)
    histories = [_of_user(reader.store, u) for u in impressions.request["user_id"]]
    impressions.request["owner"] = np.arange(len(histories))
    sources = ((reader.store, "user_id"), (InlineHistories(histories), "owner"))
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
    assert stored.history_counts[:, 0].max() > 4
    assert torch.equal(stored.history_counts, inline.history_counts)
    assert stored.sequence is not None and inline.sequence is not None
    assert torch.equal(stored.sequence.lengths(), inline.sequence.lengths())
    assert torch.equal(stored.sequence.values(), inline.sequence.values())
    assert stored.recent is not None and inline.recent is not None
    assert torch.equal(stored.recent.age, inline.recent.age)
    sizes = [index.size for index in (stored.recent, inline.recent) if index.size is not None]
    assert len(sizes) == 2 * lookup.clustered
    assert not sizes or torch.equal(*sizes)


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
