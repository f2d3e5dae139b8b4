"""End-to-end Target Attention (ETA, arXiv 2108.04468, 2209.12212): search by hashes, then attend.

Every embedding is hashed to a few bits (SimHash), and the search keeps the behaviours whose bits
differ least from those of the target. Hashes are taken of the embeddings as they are at this step,
so that search and attention always agree, in training and in serving; nothing is trained for the
search alone. A DIN reads the recent short history beside, as in SIM.
"""

# B impressions, L behaviours, M bits of a hash, F width of item and category

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.attention import (
    Search,
    TargetAttention,
    item_features,
    search_by_product,
    target_features,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import EtaConfig
from cdp_torchrec.interest.din import DinAttention
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.recent_sequence import only_recent


class EtaInterest(InterestModule):
    """The interest is [target attention over the searched behaviours; DIN over the recent ones].

    Without a category, the items alone are hashed; without action types, behaviours are their
    items, categories and ages.
    """

    def __init__(self, config: EtaConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        self.hash = SimHash(dim=dims.item + dims.category, num_bits=config.num_bits)
        self.long = TargetAttention(config, dims, norm=config.embedding_norm)
        self.short = DinAttention(config.short, dims)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = 2 * self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the long and of the short interest, [B, interest_dim]."""
        recent, norm = inputs.recent, self.config.embedding_norm
        assert recent is not None, missing("recent")
        target = target_features(inputs, category_dim=self.category_dim, norm=norm)
        features = item_features(recent, norm=norm)
        long = self.long(target, features, recent, self._search(target, features))
        short = self.short(inputs, only_recent(recent, self.config.short_length))
        interest = [self.vector(long, inputs.item), self.vector(short, inputs.item)]
        return InterestOutput(interest=torch.cat(interest, dim=1))

    def _search(self, target: Tensor, features: Tensor) -> Search:
        """Finds the behaviours [L, F] at the least Hamming distance from the targets [B, F]."""
        query, keys = self.hash(target), self.hash(features)
        # Bits that agree less bits that differ: falls with the distance, and whole numbers have no
        # rounding. A tie goes to the most recent behaviour.
        return search_by_product(query, keys, k=self.config.num_kept)


class SimHash(nn.Module):
    """The signs of M fixed random projections (paper section 3.2; Charikar 2002).

    A bit of two vectors differs with probability angle / pi, so that their Hamming distance
    over M estimates that. The projections are drawn once, when the module is made, so they follow
    from the seed of the run; they are no parameter, and every checkpoint and artifact has them:
    drawn anew they would give other scores.
    """

    projections: Tensor
    """[F, M]"""

    def __init__(self, *, dim: int, num_bits: int) -> None:
        super().__init__()
        self.register_buffer("projections", torch.randn(dim, num_bits))

    def forward(self, x: Tensor) -> Tensor:
        """Bits of each vector as +1 and -1, without gradient, [X, F] -> float [X, M].

        In float64, so that a vector has the same bits wherever it stands in a batch.
        """
        projected = x.detach().double() @ self.projections.double()
        return torch.where(projected >= 0, 1.0, -1.0).to(x.dtype)
