"""The numbers that golden vectors of official code were made with."""

import math

import torch
from torch import Tensor


def wave(*shape: int, phase: float, scale: float = 0.5) -> Tensor:
    """scale * sin(1.7 n + phase), n counting row by row."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(1.7 * places + phase)).float().view(shape)
