"""How many ids an impression has in each key: what a sharding plan's cost depends on."""

from collections.abc import Mapping

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.data.loader import TrainBatches

_NUM_BATCHES = 4


def measure_pooling_factors(
    batches: TrainBatches, num_batches: int = _NUM_BATCHES
) -> Mapping[str, float]:
    """Pooling factors: mean number of ids per impression, by KJT key.

    What impressions of a request share is looked up once per request, so its factor may be far
    below 1.

    Args:
        batches: of this rank.
        num_batches: how many to read.
    """
    ids: dict[str, float] = {}
    impressions = 0
    for position in batches.positions(0, num_batches):
        batch = batches[position]
        impressions += len(batch.labels)
        for jagged in (batch.sparse, batch.sequence):
            if jagged is not None:
                for key, count in _num_ids(jagged).items():
                    ids[key] = ids.get(key, 0) + count
    return {key: count / impressions for key, count in ids.items()}


def _num_ids(jagged: KeyedJaggedTensor) -> dict[str, int]:
    return dict(zip(jagged.keys(), jagged.length_per_key(), strict=True))
