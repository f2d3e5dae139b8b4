"""A layer of a transformer whose tokens attend to a memory: that of LONGER and of MARM."""

# W rows of a block, X tokens in a row, Y tokens of their memory, A width

from torch import Tensor, nn

from cdp_torchrec.interest.attention import attend

_HIDDEN = 4
"""Width of the hidden layer of a feed-forward network over that of its input."""


class TransformerLayer(nn.Module):
    """Attention to a memory and a feed-forward network, both behind a layer norm."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        # A bias of the keys cancels in the softmax, one of the values is part of the output's.
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, _HIDDEN * dim),
            nn.GELU(),
            nn.Linear(_HIDDEN * dim, dim),
        )

    def memory(self, x: Tensor) -> Tensor:
        """Keys and values of tokens, [..., A] -> [..., 2 A]."""
        return self.key_value(self.attention_norm(x))

    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor, *, bias: Tensor | None = None
    ) -> Tensor:
        """Tokens after the layer, [W, X, A].

        Args:
            x: [W, X, A].
            memory: of the tokens that are attended to, [W, Y, 2 A].
            mask: which of them each token sees, bool [W, 1 or X, Y].
            bias: added to the scores, as in attend.
        """
        query = self.query(self.attention_norm(x))
        keys, values = memory.chunk(2, dim=2)
        seen = attend(query, keys, values, mask, num_heads=self.num_heads, bias=bias)
        x = x + self.out(seen)
        return x + self.feed_forward(x)


def layers_of(stack: nn.ModuleList) -> list[TransformerLayer]:
    """Layers in order, for those who call more than `forward`."""
    return [layer for layer in stack if isinstance(layer, TransformerLayer)]
