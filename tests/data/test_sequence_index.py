"""Blocks hold every behaviour and every impression once, whatever the lengths."""

import numpy as np
import pytest
import torch

from cdp_torchrec.data.sequence_index import SequenceColumns, SequenceIndex, index_sequences
from cdp_torchrec.interest.sequence import BehaviourSequence, gather, masked_softmax, present

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
    assert torch.equal(sequence.per_behaviour(lambda b: gather(item, b.behaviour)), item)
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
    longer = index_sequences(wanted, batch_size=4, blocks="one", block_length=20)
    for block in ("sequence_blocks", "candidate_blocks"):
        (short,), (long,) = getattr(of_longest, block), getattr(longer, block)
        assert short.behaviour.shape[1] == 12 and long.behaviour.shape[1] == 20
        assert torch.equal(long.behaviour[:, 8:], short.behaviour)
        assert (long.behaviour[:, :8] == len(longer.item_id)).all()


def test_blocks_are_aligned_to_the_right_and_at_most_twice_as_long_as_needed() -> None:
    index, _ = make_index(LENGTHS["mixed"])
    for block in index.sequence_blocks:
        kept = present(block, len(index.item_id))
        lengths = kept.sum(dim=1)
        assert torch.equal(kept.flip(1).cumprod(dim=1).sum(dim=1), lengths)
        assert torch.equal(lengths, index.lengths[block.sequence])
        width = block.behaviour.shape[1]
        assert width == 8 or int(lengths.min()) * 2 > width
        # The newest behaviour, the last one of its sequence, stands in the last column.
        assert torch.equal(block.behaviour[:, -1], index.lengths.cumsum(0)[block.sequence] - 1)


def test_a_row_is_as_wide_as_most_sequences_can_fill() -> None:
    widths = {}
    for candidates in (1, 2, 5, 23):
        sequence = np.repeat(np.arange(4), candidates)
        index = index_sequences(columns([3, 3, 3, 3], sequence), batch_size=4 * candidates)
        widths[candidates] = index.candidate_blocks[0].impression.shape[1]
    assert widths == {1: 1, 2: 2, 5: 8, 23: 8}


def test_a_softmax_over_nothing_is_zero_with_finite_gradients() -> None:
    scores = torch.tensor([[1e4, -1e4, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    weights = masked_softmax(scores, mask)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    weights.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_a_masked_place_never_outranks_a_real_one_with_a_negative_score() -> None:
    """Scores multiplied by the mask would give padding a score of 0."""
    weights = masked_softmax(torch.tensor([[0.0, -5.0]]), torch.tensor([[False, True]]))
    assert weights.tolist() == [[0.0, 1.0]]
