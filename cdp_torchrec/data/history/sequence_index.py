"""Which behaviours belong to which impressions, in blocks that interest modules compute on."""

# B impressions, S <= B sequences, L behaviours, W rows of a block, N its length,
# C candidates in a row

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cdp_torchrec.data.tensors import map_tensors

Blocks = Literal["by_length", "one"]
"""How sequences are grouped: by similar length, for the least work; or all in one block of each
kind, so that an exported graph always meets the same set of tensors."""

MOST_CANDIDATES_PER_ROW = 32
"""A request's candidates share one gathered copy of its history; a longer list takes more rows."""
CANDIDATES_PER_SERVED_ROW = 8
"""In the one block that an exported graph meets."""
SHORTEST_BLOCK = 8
"""Shorter sequences are padded to this length."""
# What work costs on a CPU, in pairs of a candidate and a behaviour: to gather one behaviour, and to
# begin one more block.
_PAIRS_PER_GATHER = 4
_PAIRS_PER_BLOCK = 4096
_OLDEST_S = 200 * 365 * 24 * 3600


@dataclass(frozen=True)
class SequenceBlock:
    """Sequences of similar length, one in each row."""

    sequence: Tensor
    """Number of the sequence in each row, int64 [W]."""
    behaviour: Tensor
    """Place in [0, L) of each behaviour, int64 [W, N], oldest first and aligned to the right: the
    last column holds the most recent behaviour. L where there is none."""


@dataclass(frozen=True)
class CandidateBlock:
    """Candidates beside the sequence that they share, a few candidates in each row."""

    sequence: Tensor
    """Number of the sequence of each row, int64 [W]; a long candidate list fills several rows."""
    behaviour: Tensor
    """As in SequenceBlock, int64 [W, N]."""
    impression: Tensor
    """Place in [0, B) of each candidate, int64 [W, C]; B where there is none."""


@dataclass(frozen=True)
class SequenceIndex:
    """Which behaviours belong to which impressions: all of a sequence but its embeddings."""

    item_id: Tensor
    """Item code of each behaviour, exact also for ids without a row of their own, int64 [L]."""
    category_id: Tensor
    """Category code of each behaviour, int64 [L]; 0 where the log has none."""
    age: Tensor
    """Seconds from each behaviour to the request, positive, float [L]."""
    lengths: Tensor
    """Behaviours of each sequence, int64 [S]; 0 beyond the last one."""
    owner: Tensor
    """Sequence of each behaviour, int64 [L]."""
    sequence: Tensor
    """Sequence of each impression, int64 [B]."""
    first_impression: Tensor
    """One impression of each sequence, to read what a request's impressions share, int64 [S];
    0 beyond the last one."""
    sequence_blocks: tuple[SequenceBlock, ...]
    """Every sequence that is not empty, once."""
    candidate_blocks: tuple[CandidateBlock, ...]
    """Every impression once; those with an empty history stand in a row of padding."""
    place: Tensor
    """Place of each impression in the flattened candidate blocks, int64 [B]."""
    size: Tensor | None = None
    """Behaviours that each one stands for, float [L], where it is a cluster of them (TWIN-V2): then
    age is their mean. None where it is one behaviour."""
    attributes: Tensor | None = None
    """Numbers of each behaviour, standardised, 1 for each of its several ids and 0 where it has
    fewer, 1 for its part of the day (behaviour_values.py), float [L, A]; None where there is
    nothing of it."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SequenceIndex":
        """The index on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class SequenceColumns:
    """Behaviours of sequences one after the other, oldest first in each, and who reads them."""

    item_id: np.ndarray
    """[L]"""
    category_id: np.ndarray
    """[L]"""
    age_s: np.ndarray
    """Seconds from the behaviour to its request, [L]."""
    lengths: np.ndarray
    """Behaviours of each sequence, [S]."""
    sequence: np.ndarray
    """Sequence of each impression, [<= B]; every sequence has an impression."""
    size: np.ndarray | None = None
    """Behaviours that each one stands for, [L]; None where it is one behaviour."""
    attributes: np.ndarray | None = None
    """[L, A], as in SequenceIndex."""


def index_sequences(
    columns: SequenceColumns,
    *,
    batch_size: int,
    blocks: Blocks = "by_length",
    shortest: int = SHORTEST_BLOCK,
) -> SequenceIndex:
    """The index of a batch; impressions up to `batch_size` are padding and read sequence 0.

    Args:
        columns: the behaviours.
        batch_size: places B in the batch.
        blocks: how sequences are grouped. "one" needs two places of padding, whose impressions
            read the last sequence; behaviours that it adds come after all others.
        shortest: length of the one block, if no sequence is longer.

    Raises:
        ValueError: the columns do not go together, or an age cannot be meant.
    """
    _check(columns)
    if blocks == "one":
        columns = _with_two_sequences(columns, batch_size)
    num_behaviours = len(columns.item_id)
    starts = np.cumsum(columns.lengths) - columns.lengths
    sequence = np.zeros(batch_size, dtype=np.int64)
    sequence[: len(columns.sequence)] = columns.sequence
    lengths = np.zeros(batch_size, dtype=np.int64)
    lengths[: len(columns.lengths)] = columns.lengths
    ends = np.zeros(batch_size, dtype=np.int64)
    ends[: len(columns.lengths)] = starts + columns.lengths
    first_impression = np.zeros(batch_size, dtype=np.int64)
    found, first = np.unique(sequence, return_index=True)
    first_impression[found] = first
    size = np.maximum(lengths, SHORTEST_BLOCK)
    if blocks == "one":
        size[:] = max(lengths.max(), shortest, SHORTEST_BLOCK)

    def behaviours(rows: np.ndarray) -> np.ndarray:
        """Places of the behaviours of some sequences, aligned to the right, [W, N]."""
        column = np.arange(-size[rows].max(initial=SHORTEST_BLOCK), 0)
        places = ends[rows, None] + column
        return np.where(column >= -lengths[rows, None], places, num_behaviours)

    def sequence_block(rows: np.ndarray) -> SequenceBlock:
        return SequenceBlock(_tensor(rows), _tensor(behaviours(rows)))

    candidates = _CandidateRows.of(sequence, blocks)
    place = np.zeros(batch_size, dtype=np.int64)
    candidate_blocks, before = [], 0
    for rows in _alike(size[candidates.sequence], candidates.width):
        shown = candidates.impression[rows, : candidates.width[rows].max()]
        of_rows = candidates.sequence[rows]
        block = CandidateBlock(_tensor(of_rows), _tensor(behaviours(of_rows)), _tensor(shown))
        candidate_blocks.append(block)
        filled = shown < batch_size
        place[shown[filled]] = before + np.flatnonzero(filled)
        before += filled.size
    # One block at least, so that a batch without any behaviour is no special case.
    filled = np.flatnonzero(lengths)
    of_sequences = _alike(size[filled], np.ones_like(filled)) if len(filled) else [filled]
    return SequenceIndex(
        item_id=_tensor(columns.item_id),
        category_id=_tensor(columns.category_id),
        age=torch.from_numpy(columns.age_s.astype(np.float32)),
        lengths=_tensor(lengths),
        owner=_tensor(np.repeat(np.arange(len(columns.lengths)), columns.lengths)),
        sequence=_tensor(sequence),
        first_impression=_tensor(first_impression),
        sequence_blocks=tuple(sequence_block(filled[rows]) for rows in of_sequences),
        candidate_blocks=tuple(candidate_blocks),
        place=_tensor(place),
        size=_floats(columns.size),
        attributes=_floats(columns.attributes),
    )


def _check(columns: SequenceColumns) -> None:
    """Refuse what would be read as other behaviours, or as none, without a word."""
    expected = int(columns.lengths.sum())
    for name in ("item_id", "category_id", "age_s", "size", "attributes"):
        values = getattr(columns, name)
        if values is not None and len(values) != expected:
            raise ValueError(
                f"SequenceColumns.{name}: expected {expected} behaviours, the sum of lengths, "
                f"found {len(values)}"
            )
    if not (oldest := columns.age_s.max(initial=0.0)) <= _OLDEST_S:
        raise ValueError(
            f"SequenceColumns.age_s: expected seconds from a behaviour to its request, found "
            f"{oldest:g}, more than 200 years: are they milliseconds?"
        )
    if columns.sequence.max(initial=-1) >= len(columns.lengths):
        raise ValueError(
            f"SequenceColumns.sequence: expected less than {len(columns.lengths)}, the number of "
            f"sequences, found {columns.sequence.max()}"
        )


@dataclass(frozen=True)
class _CandidateRows:
    """The candidates of a batch in rows of one sequence each."""

    sequence: np.ndarray
    """Of each row, [W]."""
    width: np.ndarray
    """Places of each row, [W]."""
    impression: np.ndarray
    """In each place, [W, C]; B where there is none."""

    @classmethod
    def of(cls, sequence: np.ndarray, blocks: Blocks) -> "_CandidateRows":
        """Rows as few and as even as can be.

        Args:
            sequence: of each impression, [B].
            blocks: as in index_sequences; rows of "one" have a fixed width.
        """
        batch_size = len(sequence)
        counts = np.bincount(sequence, minlength=batch_size)
        num_rows = -(-counts // MOST_CANDIDATES_PER_ROW)
        width = -(-counts // np.maximum(num_rows, 1))
        if blocks == "one":
            width[:] = CANDIDATES_PER_SERVED_ROW
        order = np.argsort(sequence, kind="stable")
        rank = np.arange(batch_size) - np.repeat(np.cumsum(counts) - counts, counts)
        in_row = np.repeat(width, counts)
        key, row = np.unique(sequence[order] * batch_size + rank // in_row, return_inverse=True)
        impression = np.full((len(key), width.max()), batch_size)
        impression[row, rank % in_row] = order
        of_row = key // batch_size
        return cls(sequence=of_row, width=width[of_row], impression=impression)


def _with_two_sequences(columns: SequenceColumns, batch_size: int) -> SequenceColumns:
    """At least two sequences with a behaviour: an exported graph takes a size below 2 for constant.

    Sequences that are missing get one behaviour each, at the end of the batch. The impressions of
    padding read the very last sequence, so that candidates also fill two rows at least.
    """
    missing = max(0, 2 - np.count_nonzero(columns.lengths))
    lengths = np.zeros(batch_size, dtype=np.int64)
    lengths[: len(columns.lengths)] = columns.lengths
    lengths[batch_size - missing :] = 1
    sequence = np.full(batch_size, batch_size - 1)
    sequence[: len(columns.sequence)] = columns.sequence
    nothing = np.zeros(missing, dtype=np.int64)
    attributes = columns.attributes
    nothings = np.zeros((missing, 0 if attributes is None else attributes.shape[1]), np.float32)
    return SequenceColumns(
        item_id=np.append(columns.item_id, nothing),
        category_id=np.append(columns.category_id, nothing),
        age_s=np.append(columns.age_s, nothing + 1.0),
        lengths=lengths,
        sequence=sequence,
        size=None if columns.size is None else np.append(columns.size, nothing + 1),
        attributes=None if attributes is None else np.concatenate([attributes, nothings]),
    )


def _alike(length: np.ndarray, width: np.ndarray) -> list[np.ndarray]:
    """Rows in groups that cost the least, each in order, shorter and narrower groups first.

    A group is padded to its longest and widest row. It is cut in two, where that saves most, for as
    long as that saves more than a block costs.

    Args:
        length: behaviours of each row, [R] with R >= 1.
        width: candidates of each row, [R].
    """
    cost = float(len(length)) * length.max() * (width.max() + _PAIRS_PER_GATHER)
    best, cut = cost - _PAIRS_PER_BLOCK, None
    for order in (np.argsort(length, kind="stable"), np.argsort(width, kind="stable")):
        before = _costs(length[order], width[order])
        after = _costs(length[order[::-1]], width[order[::-1]])[::-1]
        costs = before[:-1] + after[1:]
        if len(costs) and costs.min() < best:
            best, at = costs.min(), int(costs.argmin()) + 1
            cut = np.sort(order[:at]), np.sort(order[at:])
    if cut is None:
        return [np.arange(len(length))]
    return [rows[part] for rows in cut for part in _alike(length[rows], width[rows])]


def _costs(length: np.ndarray, width: np.ndarray) -> np.ndarray:
    """What the first row, the first two, ... cost as one group, [R]."""
    longest, widest = np.maximum.accumulate(length), np.maximum.accumulate(width)
    return np.arange(1.0, len(length) + 1) * longest * (widest + _PAIRS_PER_GATHER)


def _floats(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array.astype(np.float32))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
