"""Randomness as a pure function of a key, such as an impression's.

Every draw is a hash of (key, stream, counter), so it is bit-identical whatever else is in the
batch, on any rank and in training, evaluation and serving alike. Only tensor operations are used:
the functions compile and export, to the same draws.
"""

# B keys, D latent dim

import math
from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

KeyT = TypeVar("KeyT", Tensor, np.ndarray)


@unique
class Stream(IntEnum):
    """All streams of the project: what is drawn for one key in different streams is independent."""

    INITIAL_ROWS = -1
    """Initial embeddings; a key is a row of a table and the run's seed."""
    START_NOISE = 0
    """Noise of the state where sampling starts (CDP, DiffuMIN; the user of DDRM), and of CDDRec's
    samples."""
    TRAINING_NOISE = 1
    """Noise of the denoising loss (CDP, CDDRec, DiffRec, DiffuMIN; the user of DDRM)."""
    TRAINING_TIMESTEP = 2
    """Timestep of the denoising loss; DDRM's user and item share it."""
    NEXT_BEHAVIOUR_NEGATIVE = 3
    """What the next behaviour is told from (DIEN, SASRec); a key is a request's behaviour."""
    ITEM_TRAINING_NOISE = 4
    """Noise of the item in DDRM's denoising loss."""
    ITEM_START_NOISE = 5
    """Noise of the item where DDRM's sampling starts."""
    LATENT_NOISE = 6
    """Draw of L-DiffRec's encoder; a key is a request, as for all of DiffRec's draws."""
    RELEVANCE_NEGATIVE = 7
    """Own behaviour that the item shown for a query is told from (QIN)."""
    PART_SIZE = 8
    """Size of the random part of a gated history; a key is a request's category."""
    PART_MEMBER = 9
    """Which behaviours make that part; a key is one of them."""
    ID_DROPOUT = 10
    """Whether an id stands on its shared row in training; a key is a request's id."""
    STRANGER = 20
    """Another user, whose history a request's is told from; a key is a request's attempt."""
    MASKED_BEHAVIOUR = 21
    """Whether a view may replace a behaviour (CaDiRec); a key is a request's behaviour."""
    FIRST_VIEW = 22
    """What stands for a masked behaviour in the first view."""
    SECOND_VIEW = 23
    """And in the second."""
    AUGMENTED = 24
    """Whether a sparse history is read augmented (Diff4Rec); a key is a request."""
    REORDERED_WINDOW = 30
    """Where the reordered part of a view begins (CDDRec); a key is a request."""
    REORDERED_BEHAVIOUR = 31
    """Where in that part a behaviour goes; a key is a request's behaviour."""


def seeded(key: Tensor, seed: int) -> Tensor:
    """The keys [B] of a run: another seed, other keys.

    For one stream: in the next one, a seed draws what its neighbour draws here.
    """
    return _plus(key, _int64(_INCREMENT * (seed + 1)))


def further_key(key: Tensor, number: int) -> Tensor:
    """Keys [B] of one more draw for what the keys name, independent of theirs in all streams."""
    return _finalise(_plus(key, _int64(_FURTHER * (number + 1))))


def epoch_draw(epoch: int, seed: int) -> int:
    """The `draw` of a training's epoch in `impression_key`.

    Two epochs lie so far apart that what counts on from a key, such as the behaviours of a request,
    never comes to those of another epoch.
    """
    return 1 + _int64(_FURTHER * (epoch + (seed << 20)))


def impression_key(request: KeyT, item: KeyT, draw: int) -> KeyT:
    """The key of an impression: a sum modulo 2**64, so `shared_key` can take the item out again.

    Args:
        request: id of its request, int64.
        item: code of its item, int64.
        draw: another draw, another key.
    """
    return (request * _KEY_FACTOR + item) * _KEY_FACTOR + draw


def shared_key(key: Tensor, *, item: Tensor, group: Tensor) -> Tensor:
    """A key that all impressions of a request share whose `group` is the same, int64 [B].

    Args:
        key: from `impression_key`, int64 [B].
        item: the item in it, int64 [B].
        group: such as the category, int64 [B].
    """
    without_item = _plus(key, _times(item, 2**64 - _KEY_FACTOR))
    return _plus(without_item, _times(group, _KEY_FACTOR))


def keyed_normal(key: Tensor, dim: int, stream: Stream) -> Tensor:
    """Standard normal draws of each key (Box-Muller on SplitMix64 bits).

    Args:
        key: int64 [B]; equal keys give equal draws.
        dim: number of draws per key.
        stream: what they are for.

    Returns:
        float32 [B, dim]; computed in float64 so that the last bits of log and cos do not matter.
    """
    bits = _random_bits(key, (dim + 1) // 2, stream)
    radius = ((_shift_right(bits, 32) + 1).double() * 2.0**-32).log().mul(-2.0).sqrt()
    angle = (bits & _LOW).double() * (2.0 * math.pi * 2.0**-32)
    draws = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return draws[:, :dim].float()


def keyed_uniform(key: Tensor, stream: Stream) -> Tensor:
    """A multiple of 2^-32 in [0, 1) for each key, float64 [B]."""
    return _shift_right(_random_bits(key, 1, stream).squeeze(1), 32).double() * 2.0**-32


def keyed_timesteps(key: Tensor, num_train_timesteps: int, stream: Stream) -> Tensor:
    """Uniform timestep in 1..num_train_timesteps of each key, int64 [B]."""
    bits = _random_bits(key, 1, stream).squeeze(1)
    return 1 + ((_shift_right(bits, 32) * num_train_timesteps) >> 32)


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


_KEY_FACTOR = 0x1000003
# Odd, so that no two products are the same, and no multiple of the other constants.
_FURTHER = 0xD1B54A32D192ED03

# SplitMix64 (Steele, Lea and Flood 2014): a Weyl sequence with this increment, then the finaliser.
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_LOW = 0xFFFFFFFF


def _random_bits(key: Tensor, count: int, stream: Stream) -> Tensor:
    # torch 2.12 cannot compile the sum of an IntEnum.
    seed = _finalise(_plus(key, _int64(_INCREMENT * (stream.value + 1))))
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
    return _finalise(_plus(seed.unsqueeze(1), _times(counter, _INCREMENT)))


def _finalise(x: Tensor) -> Tensor:
    x = _times(x ^ _shift_right(x, 30), _MULTIPLIER_1)
    x = _times(x ^ _shift_right(x, 27), _MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the hash needs zeros from the left.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


# The hash counts modulo 2**64. PyTorch's own operations on int64 do; compiled they are signed C++,
# where an overflow means that the compiler may assume anything (PyTorch 2.13 with gcc draws other
# numbers from 64 a key on), and Triton may count an arange in 32 bits. So compiled code multiplies
# without a sign, which PyTorch's own operations can on CPU only, and adds in halves.


def _plus(x: Tensor, y: Tensor | int) -> Tensor:
    """The sum modulo 2**64."""
    if not torch.compiler.is_compiling():
        return x + y
    low = (x & _LOW) + (y & _LOW)
    high = (x >> 32) + (y >> 32) + (low >> 32)
    return ((high & _LOW) << 32) | (low & _LOW)


def _times(x: Tensor, factor: int) -> Tensor:
    """The product modulo 2**64, of 0 <= factor < 2**64."""
    if not torch.compiler.is_compiling():
        return x * _int64(factor)
    return (x.view(torch.uint64) * factor).view(torch.int64)
