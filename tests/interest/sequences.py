"""Sequences of behaviours made from others, or of items alone."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceColumns, index_sequences
from cdp_torchrec.interest import BehaviourSequence, InterestInput


def items_only(
    item: Tensor,
    lengths: Sequence[int],
    *,
    sequence: Sequence[int] | None = None,
    item_id: Sequence[int] | None = None,
    age_s: Sequence[float] | None = None,
) -> BehaviourSequence:
    """Behaviours without category and action.

    Args:
        item: embeddings, [L, D].
        lengths: behaviours of each sequence.
        sequence: of each impression; by default each sequence has one.
        item_id: codes; 1 by default.
        age_s: seconds; 1 by default.
    """
    sequence = range(len(lengths)) if sequence is None else sequence
    columns = SequenceColumns(
        item_id=np.array([1] * len(item) if item_id is None else item_id, dtype=np.int64),
        category_id=np.ones(len(item), dtype=np.int64),
        age_s=np.array([1.0] * len(item) if age_s is None else age_s),
        lengths=np.array(lengths),
        sequence=np.array(sequence),
    )
    nothing = torch.zeros(len(item), 0)
    index = index_sequences(columns, batch_size=len(sequence))
    return BehaviourSequence(item=item, category=nothing, action=nothing, index=index)


def take(inputs: InterestInput, rows: Tensor) -> InterestInput:
    """Some impressions as a batch of their own, with the sequences that they read."""
    taken: dict[str, Any] = {}
    for field in fields(InterestInput):
        value = getattr(inputs, field.name)
        if isinstance(value, BehaviourSequence):
            taken[field.name] = take_sequences(value, rows)
        elif is_dataclass(value):
            pool = {f.name: getattr(value, f.name)[rows] for f in fields(value)}
            taken[field.name] = replace(value, **pool)
        else:
            taken[field.name] = value[rows]
    return InterestInput(**taken)


def take_sequences(behaviours: BehaviourSequence, rows: Tensor) -> BehaviourSequence:
    """The sequences that some impressions read, for these alone."""
    index = behaviours.index
    wanted, sequence = index.sequence[rows].unique(return_inverse=True)
    kept = torch.cat([(index.owner == w).nonzero().flatten() for w in wanted])
    columns = SequenceColumns(
        item_id=index.item_id[kept].numpy(),
        category_id=index.category_id[kept].numpy(),
        age_s=index.age[kept].numpy().astype(np.float64),
        lengths=index.lengths[wanted].numpy(),
        sequence=sequence.numpy(),
        size=None if index.size is None else index.size[kept].numpy(),
    )
    return BehaviourSequence(
        item=behaviours.item[kept],
        category=behaviours.category[kept],
        action=behaviours.action[kept],
        index=index_sequences(columns, batch_size=len(rows)),
    )


def padded(sequence: BehaviourSequence, places: int) -> BehaviourSequence:
    """The same, with more places of padding before the behaviours of each row."""
    index = sequence.index

    def with_padding(behaviour: Tensor) -> Tensor:
        return functional.pad(behaviour, (places, 0), value=len(index.owner))

    longer = replace(
        index,
        sequence_blocks=tuple(
            replace(block, behaviour=with_padding(block.behaviour))
            for block in index.sequence_blocks
        ),
        candidate_blocks=tuple(
            replace(block, behaviour=with_padding(block.behaviour))
            for block in index.candidate_blocks
        ),
    )
    return replace(sequence, index=longer)
