"""A transformer block on few tokens: attention, condition, feed-forward, each with a layer norm."""

# W rows, M tokens that are updated, N tokens that they attend to, F width

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.attention import attend

_NORM_EPS = 1e-6


class TokenBlock(nn.Module):
    """Post-norm block as in DiffuMIN's public code: matrices of the attention have no bias."""

    def __init__(
        self, dim: int, *, num_heads: int, hidden_multiple: int, conditioned: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.attention_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        # The paper's cross-attention to one token: a softmax over one score is 1, so query and key
        # cannot learn, and value and output are one matrix.
        self.condition = nn.Linear(dim, dim, bias=False) if conditioned else None
        self.condition_norm = nn.LayerNorm(dim, eps=_NORM_EPS) if conditioned else None
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_multiple * dim),
            nn.ReLU(),
            nn.Linear(hidden_multiple * dim, dim),
        )
        self.feed_forward_norm = nn.LayerNorm(dim, eps=_NORM_EPS)

    def forward(
        self, x: Tensor, others: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """The updated tokens, [W, M, F].

        Args:
            x: tokens to update, [W, M, F].
            others: tokens that they attend to, themselves among them, [W, N, F].
            mask: which of these each row may attend to, at least one, bool [W, 1, N].
            condition: one token for each row, [W, F], if the block is conditioned.
        """
        keys, values = self.key_value(others).chunk(2, dim=2)
        attended = attend(self.query(x), keys, values, mask, num_heads=self.num_heads)
        x = self.attention_norm(x + self.output(attended))
        if self.condition is not None and self.condition_norm is not None:
            assert condition is not None
            x = self.condition_norm(x + self.condition(condition).unsqueeze(1))
        return self.feed_forward_norm(x + self.feed_forward(x))


def encode_last(blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """The last of the tokens [W, N, F] after all blocks, [W, F]; the mask is as in a block.

    The last block updates that token alone.
    """
    for block in blocks[:-1]:
        x = block(x, x, mask)
    return blocks[-1](x[:, -1:], x, mask).squeeze(1)


def own_place(mask: Tensor) -> Tensor:
    """The mask [W, N] with one more token at the end that is always there, bool [W, 1, N + 1]."""
    return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1).unsqueeze(1)
