"""Pooled history z_0 that looks at the target item: attention instead of the mean of eq. 3.

Ours (ambiguity a17): a behaviour carries its item, category, action type and age, and counts as
much as it says about the target item. Everything behind z_0 is the same as for the mean.
"""

# B impressions, D embedding dim

from torch import Tensor

from cdp_torchrec.interest.attention import (
    TargetAttention,
    find_all,
    item_features,
    target_features,
)
from cdp_torchrec.interest.base import InterestDims, InterestInput, missing
from cdp_torchrec.interest.config.base import AttentionConfig


class AttentivePooling(TargetAttention):
    """Attention of the target item over the gated behaviours, [B, D]."""

    def __init__(self, config: AttentionConfig, dims: InterestDims) -> None:
        super().__init__(config, dims, norm="none")
        self.category_dim = dims.category

    def pool(self, inputs: InterestInput) -> tuple[Tensor, Tensor]:
        """Weighted mean of the behaviours [B, D], and their number, float [B].

        Zeros where the history is empty.
        """
        sequence = inputs.gated
        assert sequence is not None, missing("gated")
        target = target_features(inputs, category_dim=self.category_dim, norm=self.norm)
        features = item_features(sequence, norm=self.norm)
        mean = self(target, features, sequence, find_all)
        lengths = sequence.index.lengths.index_select(0, sequence.index.sequence)
        return mean, lengths.to(mean.dtype)
