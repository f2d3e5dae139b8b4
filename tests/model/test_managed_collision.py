"""Which row an id owns, against a plain-Python account of TorchRec's eviction policies."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from cdp_torchrec.data.config import EvictionPolicyName, ManagedCollisionConfig
from cdp_torchrec.model.managed_collision import BucketedCollisionModule

CPU = torch.device("cpu")
BUCKETS, BUCKET_ROWS, INTERVAL = 4, 6, 3


def make_module(policy: EvictionPolicyName = "distance_lfu") -> BucketedCollisionModule:
    config = ManagedCollisionConfig(
        zch_size=BUCKETS * BUCKET_ROWS,
        buckets=BUCKETS,
        eviction_policy=policy,
        eviction_interval=INTERVAL,
    )
    return BucketedCollisionModule(config, device=CPU)


def features(ids: list[int]) -> dict[str, JaggedTensor]:
    return {"t": JaggedTensor(torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))}


def rows(module: BucketedCollisionModule, ids: list[int]) -> list[int]:
    return module.remap(features(ids))["t"].values().tolist()


def random_steps(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [(rng.zipf(1.3, size=30) % 97 + step % 5).tolist() for step in range(count)]


@dataclass
class Slot:
    """A row and its owner."""

    row: int
    owner: float = float("inf")
    count: int = 0
    last: int = 0


@dataclass
class Reference:
    """The rows of one bucket; the last one has no owner, ever."""

    policy: EvictionPolicyName
    slots: list[Slot]
    evicted: list[int] = field(default_factory=list)

    def score(self, slot: Slot, now: int) -> float:
        age = now - slot.last + 1
        return {"lfu": slot.count, "lru": -age, "distance_lfu": slot.count / age}[self.policy]

    def assign(self, steps: list[list[int]], now: int) -> None:
        count = Counter(id_ for step in steps for id_ in set(step))
        last = {id_: now - len(steps) + 1 + i for i, step in enumerate(steps) for id_ in step}
        for slot in self.slots:
            if slot.owner in count:
                slot.count += count.pop(int(slot.owner))
                slot.last = last[int(slot.owner)]
        new = [Slot(-1, id_, count[id_], last[id_]) for id_ in sorted(count)]
        new.sort(key=lambda slot: -slot.count)
        ranked = sorted([*self.slots, *new], key=lambda slot: -self.score(slot, now))
        losers = [slot for slot in ranked[len(self.slots) :] if slot.row >= 0]
        winners = [slot for slot in ranked[: len(self.slots)] if slot.row < 0]
        for loser, winner in zip(losers, winners, strict=True):
            self.evicted.append(loser.row)
            loser.owner, loser.count, loser.last = winner.owner, winner.count, winner.last
        self.slots.sort(key=lambda slot: slot.owner)


@pytest.mark.parametrize("policy", ["lfu", "lru", "distance_lfu"])
def test_rows_change_owners_as_a_plain_account_of_the_policy_says(
    policy: EvictionPolicyName,
) -> None:
    module = make_module(policy)
    references = [
        Reference(policy, [Slot(b * BUCKET_ROWS + i) for i in range(BUCKET_ROWS - 1)])
        for b in range(BUCKETS)
    ]
    steps = random_steps(10 * INTERVAL)
    num_evicted = 0
    for now, ids in enumerate(steps, 1):
        module.profile(features(ids))
        if now % INTERVAL:
            continue
        expected: list[int] = []
        for bucket, reference in enumerate(references):
            recent = [[i for i in s if i % BUCKETS == bucket] for s in steps[now - INTERVAL : now]]
            reference.assign(recent, now)
            expected += reference.evicted
            reference.evicted = []
        evicted = module.evict()
        assert evicted is not None
        assert evicted.tolist() == expected
        num_evicted += len(expected)
        owned = {int(s.owner): s.row for r in references for s in r.slots if s.owner < 1000}
        assert rows(module, list(range(110))) == [
            owned.get(i, (i % BUCKETS + 1) * BUCKET_ROWS - 1) for i in range(110)
        ]
    assert num_evicted > BUCKETS * (BUCKET_ROWS - 1), "not only free rows found an owner"


def test_an_id_counts_once_a_step_however_many_ranks_send_it() -> None:
    """Fails where a request that two ranks share makes its ids twice as frequent."""
    once, twice = make_module("lfu"), make_module("lfu")
    for ids in random_steps(4 * INTERVAL):
        once.profile(features(ids))
        twice.profile(features([*ids, *ids[:3]]))
    assert torch.equal(once.keys, twice.keys)
    assert torch.equal(once.counts, twice.counts)


def test_halves_of_the_buckets_map_ids_as_the_whole_does() -> None:
    whole = make_module()
    half = BUCKETS // 2 * BUCKET_ROWS
    bounds = [0, half, 2 * half]
    parts = [whole.rebuild_with_output_id_range(b, [], CPU) for b in pairwise(bounds)]
    for ids in random_steps(4 * INTERVAL):
        whole.profile(features(ids))
        for rank, part in enumerate(parts):
            part.profile(features([i for i in ids if i % BUCKETS // (BUCKETS // 2) == rank]))
    for rank, part in enumerate(parts):
        own = [i for i in range(110) if i % BUCKETS // (BUCKETS // 2) == rank]
        assert rows(part, own) == rows(whole, own)
    for name in ("keys", "rows", "counts", "last_access_iter"):
        joined = torch.cat([part.get_buffer(name) for part in parts])
        assert torch.equal(joined, whole.get_buffer(name))


def test_evaluation_neither_counts_nor_assigns() -> None:
    module = make_module()
    for ids in random_steps(INTERVAL):
        module.profile(features(ids))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.evict()
    module.eval()
    for ids in random_steps(4 * INTERVAL):
        module(features([i + 500 for i in ids]))
    assert module.evict() is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_state_continues_as_if_it_had_never_been_saved() -> None:
    steps = random_steps(4 * INTERVAL)
    original, restored = make_module(), make_module()
    for ids in steps[: 2 * INTERVAL]:
        original.profile(features(ids))
    restored.load_state_dict(original.state_dict())
    for ids in steps[2 * INTERVAL :]:
        original.profile(features(ids))
        restored.profile(features(ids))
    for name, value in original.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name])


def test_free_rows_are_counted() -> None:
    module = make_module()
    assert module.open_slots().tolist() == [BUCKETS * (BUCKET_ROWS - 1)]
    for _ in range(INTERVAL):
        module.profile(features([4, 8, 9]))
    assert module.open_slots().tolist() == [BUCKETS * (BUCKET_ROWS - 1) - 3]


@pytest.mark.parametrize(("zch_size", "buckets"), [(63, 16), (16, 16)])
def test_a_table_that_buckets_do_not_divide_is_refused(zch_size: int, buckets: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of buckets = {buckets}"):
        ManagedCollisionConfig(zch_size=zch_size, buckets=buckets)
