"""Blocks hold every behaviour and every impression once, whatever the lengths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cdp_torchrec.data.history import sequence_index
from cdp_torchrec.data.history.sequence_index import SequenceColumns, SequenceIndex, index_sequences
from cdp_torchrec.interest.sequence import (
    BehaviourSequence,
    gather,
    gather_each,
    masked_softmax,
    present,
)

LENGTHS = {
    "mixed": [0, 1, 8, 9, 40, 3],
    "all empty": [0, 0],
    "one long": [100],
}


def columns(lengths: list[int], sequence: np.ndarray) -> SequenceColumns:
    total = sum(lengths)
    return SequenceColumns(
        item_id=np.arange(total) + 10,
        category_id=np.arange(total) % 3,
        age_s=np.linspace(9.0, 1.0, total),
        lengths=np.array(lengths),
        sequence=sequence,
    )


def make_index(
    lengths: list[int], *, batch_size: int = 24, impressions: int = 20
) -> tuple[SequenceIndex, np.ndarray]:
    """An index, and the sequence of each impression, padding included."""
    rng = np.random.default_rng(0)
    others = rng.integers(0, len(lengths), impressions - len(lengths))
    sequence = rng.permutation(np.concatenate([np.arange(len(lengths)), others]))
    index = index_sequences(columns(lengths, sequence), batch_size=batch_size)
    padded = np.concatenate([sequence, np.zeros(batch_size - impressions, dtype=np.int64)])
    return index, padded


def make_one_block(lengths: list[int]) -> tuple[SequenceIndex, list[int]]:
    """An index of one block, and the sequence of each impression but padding."""
    owner = [place % len(lengths) for place in range(20)]
    return index_sequences(columns(lengths, np.array(owner)), batch_size=22, blocks="one"), owner


def behaviours(index: SequenceIndex) -> BehaviourSequence:
    values = torch.arange(1.0, len(index.item_id) + 1).unsqueeze(1)
    return BehaviourSequence(item=values, category=values, action=values, index=index)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_every_candidate_sees_its_own_sequence_and_nothing_else(lengths: list[int]) -> None:
    index, owner = make_index(lengths)
    sequence = behaviours(index)
    sums = sequence.per_candidate(
        lambda block: (
            gather(sequence.item, block.behaviour)
            .sum(dim=1, keepdim=True)
            .expand(-1, block.impression.shape[1], -1)
        )
    )
    ends = np.cumsum(lengths)
    expected = [sum(range(ends[s] - lengths[s] + 1, ends[s] + 1)) for s in owner]
    assert sums.squeeze(1).tolist() == expected


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_results_return_to_the_order_of_impressions_and_of_behaviours(lengths: list[int]) -> None:
    index, owner = make_index(lengths)
    sequence = behaviours(index)
    places = torch.arange(len(owner)).unsqueeze(1).float()
    assert torch.equal(sequence.per_candidate(lambda b: gather(places, b.impression)), places)
    item = sequence.item
    assert torch.equal(sequence.per_behaviour(lambda _, rows: rows, item), item)
    for block in index.candidate_blocks:
        for row, number in zip(block.impression.tolist(), block.sequence.tolist(), strict=True):
            assert {owner[place] for place in row if place < len(owner)} == {number}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_one_block_holds_every_sequence_and_no_size_of_it_is_below_two(lengths: list[int]) -> None:
    index, owner = make_one_block(lengths)
    (of_sequences,), (of_candidates,) = index.sequence_blocks, index.candidate_blocks
    for block in (of_sequences, of_candidates):
        assert len(block.sequence) >= 2 and block.behaviour.shape[1] >= 8
    assert len(index.item_id) >= 2 and of_candidates.impression.shape[1] == 8
    sequence = behaviours(index)
    totals = sequence.sum(sequence.item).squeeze(1).tolist()
    ends = np.cumsum(lengths)
    expected = [sum(range(e - n + 1, e + 1)) for e, n in zip(ends, lengths, strict=True)]
    assert totals[: len(lengths)] == expected
    places = torch.arange(22).unsqueeze(1).float()
    assert torch.equal(sequence.per_candidate(lambda b: gather(places, b.impression)), places)
    own = sequence.per_candidate(
        lambda b: gather(sequence.item, b.behaviour).sum(dim=1, keepdim=True).expand(-1, 8, -1)
    )
    assert own.squeeze(1).tolist()[:20] == [expected[number] for number in owner]


def test_one_block_may_be_longer_than_every_sequence_with_padding_before() -> None:
    wanted = columns([3, 12], np.arange(2))
    of_longest = index_sequences(wanted, batch_size=4, blocks="one")
    longer = index_sequences(wanted, batch_size=4, blocks="one", shortest=20)
    for block in ("sequence_blocks", "candidate_blocks"):
        (short,), (long,) = getattr(of_longest, block), getattr(longer, block)
        assert short.behaviour.shape[1] == 12 and long.behaviour.shape[1] == 20
        assert torch.equal(long.behaviour[:, 8:], short.behaviour)
        assert (long.behaviour[:, :8] == len(longer.item_id)).all()


def test_blocks_are_aligned_to_the_right_and_as_long_and_wide_as_their_rows_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for blocks_cost in (0, 10**9):
        monkeypatch.setattr(sequence_index, "_PAIRS_PER_BLOCK", blocks_cost)
        index, _ = make_index(LENGTHS["mixed"])
        for block in (*index.sequence_blocks, *index.candidate_blocks):
            kept = present(block, len(index.item_id))
            lengths = kept.sum(dim=1)
            assert torch.equal(kept.flip(1).cumprod(dim=1).sum(dim=1), lengths)
            assert torch.equal(lengths, index.lengths[block.sequence])
            assert block.behaviour.shape[1] == max(8, int(lengths.max()))
            # The newest behaviour, the last one of its sequence, stands in the last column.
            newest = torch.where(
                lengths > 0, index.lengths.cumsum(0)[block.sequence] - 1, len(index.item_id)
            )
            assert torch.equal(block.behaviour[:, -1], newest)
        for block in index.candidate_blocks:
            shown = (block.impression < len(index.sequence)).sum(dim=1)
            assert block.impression.shape[1] == int(shown.max())


def test_blocks_that_cost_nothing_are_cut_until_no_row_is_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence_index, "_PAIRS_PER_BLOCK", 0)
    rng = np.random.default_rng(0)
    lengths, counts = rng.integers(8, 40, 30), rng.integers(1, 12, 30)
    sequence = np.repeat(np.arange(30), counts)
    index = index_sequences(columns(lengths.tolist(), sequence), batch_size=len(sequence))
    pairs = sum(b.behaviour.numel() * b.impression.shape[1] for b in index.candidate_blocks)
    assert pairs == int((lengths * counts).sum())
    assert sum(block.behaviour.numel() for block in index.sequence_blocks) == lengths.sum()


def test_a_cut_costs_less_than_it_saves() -> None:
    """One long history among many short ones; many long ones among them; a few of both."""

    def longest(num_short: int, num_long: int) -> list[int]:
        lengths = [10] * num_short + [2000] * num_long
        every = np.arange(len(lengths))
        index = index_sequences(columns(lengths, every), batch_size=len(lengths))
        return [block.behaviour.shape[1] for block in index.candidate_blocks]

    assert longest(100, 1) == longest(100, 100) == [10, 2000]
    assert longest(0, 100) == [2000] and longest(100, 0) == [10]
    lengths, every = [10, 30] * 5, np.arange(10)
    index = index_sequences(columns(lengths, every), batch_size=10)
    assert [block.behaviour.shape[1] for block in index.candidate_blocks] == [30]


def test_a_row_holds_all_candidates_of_a_sequence_or_an_even_share_of_a_long_list() -> None:
    widths = {}
    for candidates in (1, 2, 5, 23, 40, 100):
        sequence = np.repeat(np.arange(4), candidates)
        index = index_sequences(columns([3, 3, 3, 3], sequence), batch_size=4 * candidates)
        widths[candidates] = index.candidate_blocks[0].impression.shape[1]
    assert widths == {1: 1, 2: 2, 5: 5, 23: 23, 40: 20, 100: 25}


def test_a_softmax_over_nothing_is_zero_with_finite_gradients() -> None:
    scores = torch.tensor([[1e4, -1e4, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    weights.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_rows_for_several_sets_of_places_are_those_of_each() -> None:
    values = torch.randn(6, 3, requires_grad=True)
    places = [torch.tensor([[0, 6, 5]]), torch.tensor([[2], [5]]), torch.zeros(0, 4).long()]
    each = gather_each(values, places)
    for rows, of_one in zip(each, places, strict=True):
        assert torch.equal(rows, gather(values, of_one))
    total = torch.cat([rows.flatten() for rows in each]).sum()
    (gradient,) = torch.autograd.grad(total, values)
    assert gradient[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 2.0]


def test_a_masked_place_never_outranks_a_real_one_with_a_negative_score() -> None:
    """Scores multiplied by the mask would give padding a score of 0."""
    weights = masked_softmax(torch.tensor([[0.0, -5.0]]), torch.tensor([[False, True]]))
    assert weights.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": np.array([2, 2])}, r"item_id: expected 4 behaviours.*found 5"),
        ({"item_id": np.arange(4)}, r"item_id: expected 5 behaviours.*found 4"),
        ({"age_s": np.ones(3)}, r"age_s: expected 5 behaviours.*found 3"),
        ({"age_s": np.array([1.0, 2.0, 8e9, 3.0, 4.0])}, r"age_s: .*8e\+09.*are they millisec"),
        ({"age_s": np.array([1.0, 2.0, np.nan, 3.0, 4.0])}, r"age_s: expected seconds.*found nan"),
        ({"sequence": np.array([0, 2])}, r"sequence: expected less than 2.*found 2"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(changed, message) -> None:
    """Fails where a place of padding is read as a behaviour, or a behaviour is left out."""
    with pytest.raises(ValueError, match=message):
        index_sequences(replace(columns([2, 3], np.array([0, 1])), **changed), batch_size=4)


def test_an_index_moves_to_another_device_with_all_its_tensors() -> None:
    index, _ = make_index(LENGTHS[next(iter(LENGTHS))])
    index = replace(index, size=torch.ones(len(index.item_id))).to("meta")
    tensors = [value for value in vars(index).values() if isinstance(value, torch.Tensor)]
    for block in (*index.sequence_blocks, *index.candidate_blocks):
        tensors += vars(block).values()
    assert len(tensors) > 10 and all(tensor.device.type == "meta" for tensor in tensors)
