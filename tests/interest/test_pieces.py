"""Attention within sequences, in pieces."""

import pytest
import torch

from cdp_torchrec.interest import pieces
from cdp_torchrec.interest.pieces import in_pieces
from tests.gradients import in_float64
from tests.interest.variants import VARIANTS, auxiliary

IN_PIECES = ("cadirec", "cddrec", "hstu", "marm", "mtgr")


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v[0].split("/")[1] in IN_PIECES], ids="+".join
)
def test_pieces_of_any_size_give_what_one_gives(make_module, make_inputs, monkeypatch, variant):
    """Interest, losses and gradients."""
    module = make_module(*variant).double()
    leaves = list(module.parameters())
    inputs = in_float64(make_inputs(lengths=[0, 3, 12, 40]))
    results = []
    for queries, pairs in ((5, 1), (1 << 20, 1 << 40)):
        monkeypatch.setattr(pieces, "_QUERIES_AT_ONCE", queries)
        monkeypatch.setattr(pieces, "_PAIRS_AT_ONCE", pairs)
        output = module(inputs)
        parts = [output.interest, *auxiliary(output).values()]
        total = torch.stack([part.sin().sum() for part in parts]).sum()
        results.append([*parts, *torch.autograd.grad(total, leaves, allow_unused=True)])
    for few, together in zip(*results, strict=True):
        torch.testing.assert_close(few, together, rtol=1e-9, atol=1e-11)


def test_every_row_and_column_is_in_one_piece(monkeypatch):
    monkeypatch.setattr(pieces, "_QUERIES_AT_ONCE", 3)
    monkeypatch.setattr(pieces, "_PAIRS_AT_ONCE", 42)
    sizes = []

    def attend(queries, row, start, stop):
        assert queries.shape[1] == stop - start
        sizes.append(queries.shape[:2])
        return torch.stack([queries, row.expand_as(queries)], dim=2)

    queries, rows = torch.arange(35).view(5, 7), torch.arange(5).view(5, 1)
    found = in_pieces(attend, queries, rows)
    assert torch.equal(found, torch.stack([queries, rows.expand(5, 7)], dim=2))
    assert sizes == [(2, 3), (2, 3), (2, 1), (2, 3), (2, 3), (2, 1), (1, 3), (1, 3), (1, 1)]


def test_nothing_is_a_piece():
    for shape in ((0, 7), (0, 0), (3, 0)):
        queries = torch.zeros(*shape, 2)
        assert in_pieces(lambda some, *_: some, queries).shape == (*shape, 2)
