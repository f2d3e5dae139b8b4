"""Noise is a pure function of (key, stream) and is distributed as claimed."""

import math
import operator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cdp_torchrec.keyed_random import (
    Stream,
    epoch_draw,
    further_key,
    impression_key,
    keyed_normal,
    keyed_timesteps,
    seeded,
    shared_key,
)

KEYS = torch.arange(20_000, dtype=torch.int64)
EXTREME_KEYS = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123_456_789_012_345])


def reference_bits(key: int, index: int, stream: int) -> int:
    """SplitMix64 with unbounded integers."""
    mask, increment = 2**64 - 1, 0x9E3779B97F4A7C15

    def finalise(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    seed = finalise((key + increment * (stream + 1)) & mask)
    return finalise((seed + increment * (index + 1)) & mask)


def test_draws_equal_a_reference_with_unbounded_integers():
    dim = 5
    draws = keyed_normal(EXTREME_KEYS, dim, Stream.TRAINING_NOISE)
    timesteps = keyed_timesteps(EXTREME_KEYS, 100, Stream.TRAINING_TIMESTEP)
    for row, key in enumerate(EXTREME_KEYS.tolist()):
        cosines, sines = [], []
        for index in range(3):
            bits = reference_bits(key, index, Stream.TRAINING_NOISE)
            radius = math.sqrt(-2.0 * math.log(((bits >> 32) + 1) / 2**32))
            angle = 2.0 * math.pi * (bits & (2**32 - 1)) / 2**32
            cosines.append(radius * math.cos(angle))
            sines.append(radius * math.sin(angle))
        torch.testing.assert_close(draws[row], torch.tensor((cosines + sines)[:dim]))
        bits = reference_bits(key, 0, Stream.TRAINING_TIMESTEP)
        assert timesteps[row] == 1 + ((bits >> 32) * 100 >> 32)


def test_the_shared_key_of_a_request_forgets_the_item_and_nothing_else():
    requests, items = EXTREME_KEYS, torch.tensor([0, 1, 7, 2**31])
    shared = [
        shared_key(
            impression_key(requests, item, 9), item=item.expand(6), group=torch.full((6,), 4)
        )
        for item in items
    ]
    assert all(torch.equal(keys, shared[0]) for keys in shared)
    others = [
        shared_key(impression_key(requests, items[1], draw), item=items[1:2], group=torch.tensor(g))
        for draw, g in ((9, 5), (8, 4))
    ]
    assert len(set(torch.cat([shared[0], *others]).tolist())) == 18


class _ExactIntegers(TorchFunctionMode):
    """Fails where a sum or product of int64 overflows; counts both."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        exact = {"add": operator.add, "mul": operator.mul}.get(func.__name__.strip("_"))
        if exact is not None and isinstance(result, Tensor) and result.dtype == torch.int64:
            wide = [a.numpy().astype(object) if isinstance(a, Tensor) else a for a in args]
            assert np.array_equal(exact(*wide), result.numpy().astype(object))
            self.counted += 1
        return result


def test_compiled_code_draws_the_same_without_overflow(monkeypatch: pytest.MonkeyPatch):
    """An overflow of signed integers means nothing in C++, which compiled code is."""
    keys = torch.cat([EXTREME_KEYS, torch.randint(-(2**63), 2**63 - 1, (20,))])

    def draws() -> list[Tensor]:
        return [
            *(keyed_normal(keys, dim, stream) for dim in (1, 65) for stream in Stream),
            keyed_timesteps(keys, 100, Stream.TRAINING_TIMESTEP),
            seeded(keys, 3),
            further_key(keys, 3),
            shared_key(keys, item=torch.arange(len(keys)), group=torch.arange(len(keys))),
        ]

    eager = draws()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with _ExactIntegers() as integers:
        compiled = draws()
    assert integers.counted > 100
    for a, b in zip(compiled, eager, strict=True):
        assert torch.equal(a, b)


def test_draws_do_not_depend_on_the_rest_of_the_batch():
    whole = keyed_normal(KEYS, 16, Stream.START_NOISE)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(keyed_normal(KEYS[order], 16, Stream.START_NOISE), whole[order])
    for rows in (slice(0, 1), slice(7, 10), slice(None, None, 3)):
        assert torch.equal(keyed_normal(KEYS[rows], 16, Stream.START_NOISE), whole[rows])
    timesteps = keyed_timesteps(KEYS, 100, Stream.TRAINING_TIMESTEP)
    assert torch.equal(keyed_timesteps(KEYS[5:6], 100, Stream.TRAINING_TIMESTEP), timesteps[5:6])


@pytest.mark.parametrize("first_key", [0, -(2**63), 10**15])
@pytest.mark.parametrize("dim", [1, 16])
def test_draws_are_standard_normal(first_key: int, dim: int):
    draws = keyed_normal(KEYS + first_key, dim, Stream.START_NOISE).flatten().double()
    count = len(draws)
    assert abs(draws.mean()) < 5 / math.sqrt(count)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / count)
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-4


def test_keys_dimensions_and_streams_are_independent():
    start = keyed_normal(KEYS, 8, Stream.START_NOISE).double()
    training = keyed_normal(KEYS, 8, Stream.TRAINING_NOISE).double()
    next_key = start.roll(1, dims=0)
    columns = torch.cat([start, training, next_key], dim=1)
    # Squares too: uncorrelated draws could still share their size.
    correlations = torch.corrcoef(torch.cat([columns, columns.square()], dim=1).T)
    correlations.fill_diagonal_(0.0)
    assert correlations.abs().max() < 6 / math.sqrt(len(KEYS))


def test_no_two_streams_and_no_two_seeds_draw_the_same():
    """Fails where two streams have one number."""
    assert len(Stream.__members__) == len(set(Stream)) == len(Stream)
    by_stream = [keyed_timesteps(KEYS, 2**30, stream) for stream in Stream]
    by_seed = [keyed_timesteps(seeded(KEYS, seed), 2**30, Stream.INITIAL_ROWS) for seed in range(4)]
    for draws in (by_stream, by_seed):
        for a, b in combinations(draws, 2):
            # 20,000 pairs of independent draws in 2^30 hardly ever hold two equal ones.
            assert (a == b).sum() < 3


def test_further_keys_draw_in_no_stream_what_others_draw():
    """Fails where a further key is the key moved by a stream."""
    keys = [KEYS, *(further_key(KEYS, number) for number in range(4))]
    draws = [keyed_timesteps(key, 2**30, stream) for key in keys for stream in Stream]
    for a, b in combinations(draws, 2):
        assert (a == b).sum() < 3


@pytest.mark.parametrize("seed", [0, 1, 16, 2**43 - 1])
def test_keys_counted_on_from_one_epoch_never_come_to_another(seed: int):
    request, item = np.array([7]), np.array([3])
    keys = [impression_key(request, item, epoch_draw(epoch, seed)).item() for epoch in range(100)]
    assert min(abs(a - b) for a, b in combinations(keys, 2)) > 2**32
    assert epoch_draw(0, seed) != epoch_draw(0, seed + 1)


@pytest.mark.parametrize("num_train_timesteps", [1, 7, 100])
def test_timesteps_are_uniform_from_1_to_t(num_train_timesteps: int):
    timesteps = keyed_timesteps(KEYS, num_train_timesteps, Stream.TRAINING_TIMESTEP)
    counts = torch.bincount(timesteps, minlength=num_train_timesteps + 1)
    assert len(counts) == num_train_timesteps + 1
    assert counts[0] == 0
    if num_train_timesteps > 1:
        assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-4
