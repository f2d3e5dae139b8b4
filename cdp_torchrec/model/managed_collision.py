"""Embedding rows that ids win and lose during training (ZCH: zero-collision hashing)."""

# L ids, R rows of one bucket

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHEvictionPolicy,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from cdp_torchrec.data.config import EvictionPolicyName, ManagedCollisionConfig

_ID_BITS = 40
_FREE = (1 << _ID_BITS) - 1
"""In place of the id: a row that no id owns; larger than any id."""
_POLICIES: Mapping[EvictionPolicyName, Callable[[], MCHEvictionPolicy]] = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


class BucketedCollisionModule(ManagedCollisionModule):
    """Which row each id owns; a bucket of rows serves the ids with one remainder.

    TorchRec's MCHManagedCollisionModule keeps one map for all rows of a rank, so that what it
    evicts depends on the number of ranks, and no other number of ranks can load it. Here the map
    is one per bucket, and a rank holds whole buckets. The policies that choose what to evict are
    TorchRec's. The last row of a bucket is shared by all its ids without a row of their own.
    """

    # One entry per row, sorted by key: its bucket and owner; the row, counted over the whole table;
    # in how many steps its owner was seen, and in which one last.
    keys: Tensor
    rows: Tensor
    counts: Tensor
    last_access_iter: Tensor

    def __init__(
        self,
        config: ManagedCollisionConfig,
        *,
        device: torch.device,
        output_id_range: tuple[int, int] | None = None,
    ) -> None:
        """All rows free.

        Args:
            config: rows, buckets and policy of the whole table.
            device: where the map lives.
            output_id_range: rows of this rank, whole buckets; all of them without it.
        """
        bucket_rows = config.zch_size // config.buckets
        # The same segments on every rank and for any number of them, unlike TorchRec's.
        segments = list(range(0, config.zch_size + 1, bucket_rows))
        super().__init__(device=device, output_segments=segments)
        self._config = config
        self._bucket_rows = bucket_rows
        self._policy = _POLICIES[config.eviction_policy]()
        self._pending: list[Tensor] = []
        self._evicted: list[Tensor] = []
        first, end = output_id_range or (0, config.zch_size)
        rows = torch.arange(first, end, device=device)
        self.register_buffer("keys", (rows // bucket_rows << _ID_BITS) | _FREE)
        self.register_buffer("rows", rows)
        self.register_buffer("counts", torch.zeros_like(rows))
        self.register_buffer("last_access_iter", torch.zeros_like(rows))

    def forward(
        self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True
    ) -> dict[str, JaggedTensor]:
        """Rows in place of ids; in training the steps of ids are counted first."""
        return self.remap(self.profile(features), mutate_miss_lengths)

    @torch.no_grad()
    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Count a training step for each of its ids, and assign rows when the interval is over.

        Not how often an id occurs in it: ids of a request travel once, or once for each of the
        ranks that share the request.
        """
        if self.training:
            self._current_iter_tensor += 1
            ids = torch.cat([feature.values() for feature in features.values()])
            self._pending.append(self._keys(ids).unique())
            if len(self._pending) == self._config.eviction_interval:
                self.assign()
        return features

    @torch.no_grad()
    def assign(self) -> None:
        """Give rows to the ids counted since the last time, if they score above the owners."""
        if not self._pending:
            return
        last = int(self._current_iter_tensor)
        first = last - len(self._pending) + 1
        every_key, inverse, counts = torch.cat(self._pending).unique(
            return_inverse=True, return_counts=True
        )
        steps = [torch.full_like(keys, first + i) for i, keys in enumerate(self._pending)]
        step = torch.zeros_like(every_key).scatter_reduce_(0, inverse, torch.cat(steps), "amax")
        self._pending = []
        for start in range(0, len(self.rows), self._bucket_rows):
            own = slice(start, start + self._bucket_rows)
            mine = every_key >> _ID_BITS == self.keys[start] >> _ID_BITS
            self._assign_bucket(own, every_key[mine], counts[mine], step[mine], last)

    def _assign_bucket(
        self, own: slice, keys: Tensor, counts: Tensor, step: Tensor, current_iter: int
    ) -> None:
        """Assign the rows of one bucket.

        Args:
            own: its place in the buffers.
            keys: that were counted, increasing, int64 [L].
            counts: in how many steps, int64 [L].
            step: when last, int64 [L].
            current_iter: the current step.
        """
        frequent = torch.argsort(counts, descending=True, stable=True)
        keys = keys[frequent]
        place = torch.searchsorted(self.keys[own], keys)
        known = self.keys[own][place] == keys
        evicted, chosen = self._policy.update_metadata_and_generate_eviction_scores(
            current_iter,
            self._bucket_rows,
            frequent,
            counts[frequent],
            known,
            place[known],
            {"counts": self.counts[own], "last_access_iter": self.last_access_iter[own]},
            {"last_access_iter": step},
        )
        self.keys[own][evicted] = keys[~known][chosen]
        self._evicted.append(self.rows[own][evicted])
        by_key = torch.argsort(self.keys[own], stable=True)
        for buffer in (self.keys, self.rows, self.counts, self.last_access_iter):
            buffer[own] = buffer[own][by_key]

    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Rows in place of ids; an id that owns none gets the last row of its bucket."""
        return {name: self._remapped(feature) for name, feature in features.items()}

    def _remapped(self, feature: JaggedTensor) -> JaggedTensor:
        keys = self._keys(feature.values())
        place = torch.searchsorted(self.keys, keys)
        shared = ((keys >> _ID_BITS) + 1) * self._bucket_rows - 1
        return JaggedTensor(
            values=torch.where(self.keys[place] == keys, self.rows[place], shared),
            lengths=feature.lengths(),
            offsets=feature.offsets(),
            weights=feature.weights_or_none(),
        )

    def _keys(self, ids: Tensor) -> Tensor:
        return (ids % self._config.buckets << _ID_BITS) | ids

    def evict(self) -> Tensor | None:
        """Rows that have changed owners since the last call, int64; None if there was no turn."""
        if not self._evicted:
            return None
        evicted, self._evicted = torch.cat(self._evicted), []
        return evicted

    def open_slots(self) -> Tensor:
        """Number of rows that an id could own and none does, int64 [1]."""
        buckets = len(self.rows) // self._bucket_rows
        return (self.keys & _FREE == _FREE).sum().view(1) - buckets

    def output_size(self) -> int:
        """Rows of this part of the table."""
        return len(self.rows)

    def input_size(self) -> int:
        """0: unbounded, which makes TorchRec send an id to the bucket of its remainder."""
        return 0

    def buckets(self) -> int:
        """Buckets of the whole table."""
        return self._config.buckets

    def validate_state(self) -> None:
        """Any state of a table with as many rows and buckets is valid."""

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],
        device: torch.device | None = None,
    ) -> "BucketedCollisionModule":
        """The part of a rank."""
        return type(self)(
            self._config, device=device or self.device, output_id_range=output_id_range
        )


def row_owners(keys: Tensor, rows: Tensor) -> Tensor:
    """The id that owns each row of a whole table, int64 [E]; -1: the row is free or shared.

    Args:
        keys: of BucketedCollisionModule, all buckets one after the other.
        rows: likewise.
    """
    owners = torch.empty_like(keys)
    ids = keys & _FREE
    owners[rows] = torch.where(ids == _FREE, -1, ids)
    return owners


def manage_collisions(
    tables: Sequence[BaseEmbeddingConfig], managed: Mapping[str, ManagedCollisionConfig]
) -> ManagedCollisionCollection:
    """The maps of a collection of tables, on the meta device; sharding materialises them.

    Args:
        tables: of the collection.
        managed: how their rows are assigned, by table name.
    """
    meta = torch.device("meta")
    modules: dict[str, ManagedCollisionModule] = {
        table.name: BucketedCollisionModule(managed[table.name], device=meta) for table in tables
    }
    # Codes are taken as they are: there is nothing to hash before they are sent to their rank.
    return ManagedCollisionCollection(modules, tables, need_preprocess=False)
