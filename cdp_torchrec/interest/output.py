"""What a module with one interest vector hands to the tower, alike for all of them."""

# B impressions, D embedding dim

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.interest.config.base import InterestVectorConfig

# Embeddings start at a standard deviation of 0.001 to 0.1, and a mean of many is smaller still:
# PyTorch's default of 1e-5 would drown their variance.
NORM_EPS = 1e-8


class InterestVector(nn.Module):
    """The emitted parts of one interest vector, side by side."""

    def __init__(self, config: InterestVectorConfig, *, dim: int) -> None:
        super().__init__()
        self.emit = config.emit
        self.width = dim * len(config.emit)

    def forward(self, interest: Tensor, item: Tensor) -> Tensor:
        """[B, width] from the interest and the target item, [B, D] each."""
        parts = {"interest": interest}
        if "interest_item" in self.emit:
            parts["interest_item"] = layer_norm(interest) * layer_norm(item)
        return torch.cat([parts[part] for part in self.emit], dim=1)


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without affine, exact also for vectors as small as fresh embeddings, [B, D]."""
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
