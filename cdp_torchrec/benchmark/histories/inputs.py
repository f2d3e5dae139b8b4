"""Random inputs of an interest module, with histories of a given length."""

# B impressions, R requests, L behaviours, D embedding dim, K recency segments

import numpy as np
import torch
from torch import Tensor, nn

from cdp_torchrec.benchmark.histories.config import HistorySettings
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.history.sequence_index import SequenceColumns, index_sequences
from cdp_torchrec.interest import BehaviourSequence, GatedPool, InterestDims, InterestInput

_NUM_ITEMS = 100_000
_NUM_CATEGORIES = 100
_LONGEST_AGE_S = 1e7
_EMBEDDING_STD = 0.05
# Whatever training does by and by is in full course.
_PROGRESS = 100.0


def make_inputs(
    lookup: HistoryLookup, dims: InterestDims, length: int, settings: HistorySettings
) -> InterestInput:
    """Random inputs in the forms that a module reads.

    The candidates of a request are of one category, to which its whole history belongs: the gated
    history is as long as the other.

    Args:
        lookup: the forms.
        dims: widths.
        length: of the longest history; the others have half of it or more.
        settings: sizes.
    """
    batch_size, num_requests = settings.batch_size, settings.requests_of_batch
    generator = np.random.default_rng(0)
    request = np.arange(batch_size) * num_requests // batch_size
    lengths = generator.integers(-(-length // 2), length, num_requests, endpoint=True)
    lengths[0] = length
    category = generator.integers(1, _NUM_CATEGORIES, num_requests, endpoint=True)

    def sequence(longest: int) -> BehaviourSequence:
        kept = np.minimum(lengths, longest)
        count = int(kept.sum())
        columns = SequenceColumns(
            item_id=generator.integers(1, _NUM_ITEMS, count, endpoint=True),
            category_id=np.repeat(category, kept),
            age_s=generator.uniform(1, _LONGEST_AGE_S, count),
            lengths=kept,
            sequence=request,
            size=generator.integers(1, 20, count, endpoint=True) if lookup.clustered else None,
        )
        return BehaviourSequence(
            item=_embedding(count, dims.item),
            category=_embedding(count, dims.category),
            action=_embedding(count, dims.action),
            index=index_sequences(columns, batch_size=batch_size),
        )

    def pool(num_segments: int) -> GatedPool | None:
        if num_segments == 0:
            return None
        sums = _embedding(batch_size, num_segments, dims.item)
        return GatedPool(sums=sums, lengths=torch.ones(sums.shape[:2]))

    return InterestInput(
        user=_embedding(batch_size, dims.user),
        query=_embedding(batch_size, dims.query),
        item=_embedding(batch_size, dims.item),
        item_attributes=_embedding(batch_size, dims.item_attributes),
        context=_embedding(batch_size, dims.context),
        scene=_embedding(batch_size, dims.scene),
        progress=torch.full((batch_size,), _PROGRESS),
        key=torch.from_numpy(generator.integers(2**62, size=batch_size)),
        item_id=torch.from_numpy(generator.integers(1, _NUM_ITEMS, batch_size, endpoint=True)),
        category_id=torch.from_numpy(category[request]),
        domain_id=torch.from_numpy(request % dims.domains) if lookup.domain else None,
        pool=pool(lookup.num_pool_segments),
        part=pool(int(lookup.part)),
        whole=pool(int(lookup.whole)),
        gated=sequence(length) if lookup.gated else None,
        recent=sequence(lookup.recent_length or length) if lookup.recent else None,
        stranger=sequence(lookup.recent_length or length) if lookup.stranger else None,
    )


def _embedding(*shape: int) -> Tensor:
    return nn.init.normal_(torch.empty(shape), std=_EMBEDDING_STD).requires_grad_()


def embeddings(inputs: InterestInput) -> list[Tensor]:
    """All embeddings of some inputs; gradients reach them."""
    roles = ["user", "query", "item", "item_attributes", "context", "scene"]
    found = [getattr(inputs, role) for role in roles]
    found += [pool.sums for pool in (inputs.pool, inputs.part, inputs.whole) if pool is not None]
    for sequence in (inputs.gated, inputs.recent, inputs.stranger):
        if sequence is not None:
            found += [sequence.item, sequence.category, sequence.action]
    return found
