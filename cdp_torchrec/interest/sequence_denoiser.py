"""CaDiRec's denoiser: DeBERTa's encoder over a history of which some behaviours are noised.

The attention is disentangled (He et al., ICLR 2021): content looks at content, at how far away it
is, and the distance at content. It sees both sides, so that a noised behaviour is restored from
its whole context. No dropout, as in every other module here.
"""

# L behaviours, W rows of a block, N its length, H heads, D width, P distances, T diffusion steps

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import SequenceBlock
from cdp_torchrec.diffusion.concat_denoiser import concat_sinusoids
from cdp_torchrec.interest.pieces import in_pieces
from cdp_torchrec.interest.sequence import BehaviourSequence, masked_softmax, present

_NORM_EPS = 1e-8
_DISTANCE_STD = 0.02
_HIDDEN_MULTIPLE = 2
_TIME_MULTIPLE = 4


class SequenceDenoiser(nn.Module):
    """Predicts the clean vector of every behaviour from a sequence, some of which is noised."""

    sinusoids: Tensor
    """Description of every timestep, [T + 1, D or D + 1]."""

    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        max_distance: int,
        num_train_timesteps: int,
    ) -> None:
        """Build the network.

        Args:
            dim: width D of the behaviours.
            num_layers: blocks.
            num_heads: H, a divisor of D.
            max_distance: behaviours farther apart are taken for as far apart as this.
            num_train_timesteps: T.
        """
        super().__init__()
        time_dim = dim + dim % 2
        self.time = nn.Sequential(
            nn.Linear(time_dim, _TIME_MULTIPLE * dim),
            nn.SiLU(),
            nn.Linear(_TIME_MULTIPLE * dim, dim),
        )
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.max_distance = max_distance
        # Distances -max_distance to max_distance - 1, shared by the blocks.
        self.distance = nn.Parameter(torch.empty(2 * max_distance, dim).normal_(std=_DISTANCE_STD))
        self.blocks = nn.ModuleList(_Block(dim, num_heads=num_heads) for _ in range(num_layers))
        self.register_buffer(
            "sinusoids", concat_sinusoids(num_train_timesteps, time_dim), persistent=False
        )

    def forward(self, x_t: Tensor, timesteps: Tensor, recent: BehaviourSequence) -> Tensor:
        """Predicted clean vectors, [L, D].

        Args:
            x_t: behaviours, some of them noised, [L, D].
            timesteps: of the noise in the sequence of each behaviour, in 1..T, int64 [L].
            recent: which of them form a sequence.
        """
        x = self.norm(x_t + self.time(self.sinusoids.to(x_t.dtype))[timesteps])
        for block in self.blocks:
            x = block(x, self.distance, recent)
        return x


class _Block(nn.Module):
    """Disentangled self-attention and a feed-forward network, each normalised with its residual."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        # A bias of the keys would add one number to all content scores of a query.
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.distance_key = nn.Linear(dim, dim, bias=False)
        self.distance_query = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, _HIDDEN_MULTIPLE * dim),
            nn.GELU(),
            nn.Linear(_HIDDEN_MULTIPLE * dim, dim),
        )
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)

    def forward(self, x: Tensor, distance: Tensor, recent: BehaviourSequence) -> Tensor:
        """[L, D] -> [L, D], given the vectors of distances, [P, D]."""
        num_distances = distance.shape[0]
        # Three scores are added, so the scale is that of three.
        scale = (3 * x.shape[1] // self.num_heads) ** -0.5
        query, key = self.query(x) * scale, self.key(x)
        to_distance = self._products(query, self.distance_key(distance))
        from_distance = self._products(key, self.distance_query(distance) * scale)
        parts = [query, to_distance, key, from_distance, self.value(x)]
        widths = [part.shape[1] for part in parts]

        def attend(queries: Tensor, memory: Tensor, kept: Tensor, start: int, stop: int) -> Tensor:
            """Behaviours in columns [start, stop) to all of their sequence."""
            query, to_distance = self._heads(queries, widths[:2])
            key, from_distance, value = self._heads(memory, widths[2:])
            column = torch.arange(memory.shape[1], device=x.device)
            apart = column[start:stop].unsqueeze(1) - column + num_distances // 2
            apart = apart.clamp(0, num_distances - 1).expand(*query.shape[:2], -1, -1)
            scores = query @ key.mT + to_distance.gather(3, apart)
            scores = scores + from_distance.gather(3, apart.mT).mT
            weights = masked_softmax(scores, kept[:, None, None])
            return (weights @ value).transpose(1, 2).flatten(2)

        def encode(block: SequenceBlock, found: Tensor) -> Tensor:
            queries, memory = found.split([sum(widths[:2]), sum(widths[2:])], dim=2)
            return in_pieces(attend, queries, memory, present(block, x.shape[0]))

        attended = recent.per_behaviour(encode, torch.cat(parts, dim=1))
        x = self.attention_norm(x + self.output(attended))
        return self.norm(x + self.feed_forward(x))

    def _heads(self, x: Tensor, widths: list[int]) -> list[Tensor]:
        """Parts of x [W, N, ...], which are so wide, of each head, [W, H, N, width / H] each."""
        parts = x.split(widths, dim=2)
        return [part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts]

    def _products(self, x: Tensor, distance: Tensor) -> Tensor:
        """Products of behaviours [L, D] with distances [P, D] in each head, [L, H * P]."""
        x, distance = (values.unflatten(1, (self.num_heads, -1)) for values in (x, distance))
        return torch.einsum("lhd,phd->lhp", x, distance).flatten(1)


def rounding_scores(x_0: Tensor, items: Tensor, offered: Tensor) -> Tensor:
    """Score of each offered item for each denoised vector, [W, N, K]; -inf if it is not offered.

    Args:
        x_0: denoised vectors, [W, N, D].
        items: [W, K, D].
        offered: which of them are there, each item once, bool [W, K].
    """
    return (x_0 @ items.transpose(1, 2)).masked_fill(~offered.unsqueeze(1), -torch.inf)


def contrastive_loss(
    first: Tensor, second: Tensor, others: Tensor, mask: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE of two views of one sequence against other sequences, [B], a mean of both directions.

    Args:
        first: state of the one view, [B, D].
        second: of the other, [B, D].
        others: states of other sequences, [B, M, D].
        mask: which of them there are, bool [B, M].
        temperature: divides the inner products.
    """
    alike = (first * second).sum(dim=1, keepdim=True)
    losses = []
    for view in (first, second):
        unlike = (others @ view.unsqueeze(2)).squeeze(2).masked_fill(~mask, -torch.inf)
        scores = torch.cat([alike, unlike], dim=1) / temperature
        losses.append(-functional.log_softmax(scores, dim=1)[:, 0])
    return (losses[0] + losses[1]) / 2
