"""Serving pads histories only for modules whose computation depends on the length."""

import pytest

from cdp_torchrec.data.history.lookup import HistoryLookup


@pytest.mark.parametrize(
    ("lookup", "served"),
    [
        (HistoryLookup(recent=True), 1),
        (HistoryLookup(recent=True, graph_changes_beyond=(100,)), 1),
        (HistoryLookup(recent=True, graph_changes_beyond=(99,)), 100),
        (HistoryLookup(recent=True, graph_changes_beyond=(40, 20)), 41),
        (HistoryLookup(recent=True, recent_length=30, graph_changes_beyond=(40, 20)), 21),
        (HistoryLookup(recent=True, recent_length=50, graph_changes_beyond=(50,)), 1),
    ],
)
def test_short_sequences_are_padded_to_those_that_the_module_treats_as_the_longest(
    lookup: HistoryLookup, served: int
) -> None:
    assert lookup.shortest_served(100) == served
