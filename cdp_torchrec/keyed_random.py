"""Randomness as a pure function of a key, such as an impression's.

Every draw is a hash of (key, stream, counter), so it is bit-identical whatever else is in the
batch, on any rank and in training, evaluation and serving alike. Only tensor operations are used:
the functions compile and export.
"""

# B keys, D latent dim

import math
from enum import IntEnum, unique

import torch
from torch import Tensor


@unique
class Stream(IntEnum):
    """All streams of the project: what is drawn for one key in different streams is independent."""

    INITIAL_ROWS = -1
    """Initial embeddings; a key is a row of a table and the run's seed."""
    START_NOISE = 0
    """Noise of the state where sampling starts (CDP; the user of DDRM)."""
    TRAINING_NOISE = 1
    """Noise of the denoising loss (CDP, DiffRec; the user of DDRM)."""
    TRAINING_TIMESTEP = 2
    """Timestep of the denoising loss; DDRM's user and item share it."""
    NEXT_BEHAVIOUR_NEGATIVE = 3
    """What the next behaviour is told from (DIEN, SASRec); a key is a request's behaviour."""
    ITEM_TRAINING_NOISE = 4
    """Noise of the item in DDRM's denoising loss."""
    ITEM_START_NOISE = 5
    """Noise of the item where DDRM's sampling starts."""
    LATENT_NOISE = 6
    """Draw of L-DiffRec's encoder; a key is a history, as for all of DiffRec's draws."""
    RELEVANCE_NEGATIVE = 7
    """Own behaviour that the item shown for a query is told from (QIN)."""


def seeded(key: Tensor, seed: int) -> Tensor:
    """The keys [B] of a run: another seed, other keys."""
    return key + _int64(_INCREMENT * (seed + 1))


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
    angle = (bits & 0xFFFFFFFF).double() * (2.0 * math.pi * 2.0**-32)
    draws = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return draws[:, :dim].float()


def keyed_timesteps(key: Tensor, num_train_timesteps: int, stream: Stream) -> Tensor:
    """Uniform timestep in 1..num_train_timesteps of each key, int64 [B]."""
    bits = _random_bits(key, 1, stream).squeeze(1)
    return 1 + ((_shift_right(bits, 32) * num_train_timesteps) >> 32)


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


# SplitMix64 (Steele, Lea and Flood 2014): a Weyl sequence with this increment, then the finaliser.
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = _int64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _int64(0x94D049BB133111EB)


def _random_bits(key: Tensor, count: int, stream: Stream) -> Tensor:
    seed = _finalise(key + _int64(_INCREMENT * (stream + 1)))
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=key.device)
    return _finalise(seed.unsqueeze(1) + counter * _int64(_INCREMENT))


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the hash needs zeros from the left.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
