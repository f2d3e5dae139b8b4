"""Serving pads histories only for modules whose computation depends on the length."""

import pytest

from cdp_torchrec.data.history_lookup import HistoryLookup


@pytest.mark.parametrize(
    ("lookup", "served"),
    [
        (HistoryLookup(recent=True), None),
        (HistoryLookup(recent=True, graph_changes_beyond=100), None),
        (HistoryLookup(recent=True, graph_changes_beyond=99), 100),
        (HistoryLookup(recent=True, recent_length=50, graph_changes_beyond=0), 50),
        (HistoryLookup(recent=True, recent_length=50, graph_changes_beyond=50), None),
    ],
)
def test_sequences_are_padded_to_the_longest_if_it_exceeds_what_the_module_treats_alike(
    lookup: HistoryLookup, served: int | None
) -> None:
    assert lookup.served_recent_length(100) == served
