"""Pooled history z_0 that looks at the target item: attention instead of the mean of eq. 3.

Ours (ambiguity a17): a behaviour carries its item, category, action type and age, and counts as
much as it says about the target item. Everything behind z_0 is the same as for the mean.
"""

# B impressions, L behaviours, D embedding dim, A attention width

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import attend
from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.sequence import CandidateBlock, gather, present

if TYPE_CHECKING:
    from cdp_torchrec.interest.pooling import AttentionConfig


class AttentivePooling(nn.Module):
    """Attention of the target item over the gated behaviours, [B, D]."""

    def __init__(self, config: "AttentionConfig", dims: InterestDims) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.category_dim = dims.category
        dim = dims.item + dims.category
        self.age = AgeEmbedding(dim=config.age_dim)
        self.query = nn.Linear(dim, config.attention_dim, bias=False)
        self.key_value = nn.Linear(
            dim + dims.action + config.age_dim, 2 * config.attention_dim, bias=False
        )
        self.output = nn.Linear(config.attention_dim, dims.item, bias=False)

    def forward(self, inputs: InterestInput) -> tuple[Tensor, Tensor]:
        """Weighted mean of the behaviours [B, D], and whether there are any, bool [B, 1].

        Zeros where the history is empty.
        """
        sequence = inputs.gated
        assert sequence is not None
        category = inputs.item_attributes[:, : self.category_dim]
        query = self.query(torch.cat([inputs.item, category], dim=1))
        age = self.age(sequence.index.age)
        behaviours = torch.cat([sequence.item, sequence.category, sequence.action, age], dim=1)
        key_value = self.key_value(behaviours)

        def attend_to_all(block: CandidateBlock) -> Tensor:
            keys, values = gather(key_value, block.behaviour).chunk(2, dim=2)
            mask = present(block, behaviours.shape[0]).unsqueeze(1)
            candidates = gather(query, block.impression)
            return attend(candidates, keys, values, mask, num_heads=self.num_heads)

        lengths = sequence.index.lengths.index_select(0, sequence.index.sequence)
        mean = self.output(sequence.per_candidate(attend_to_all))
        return mean, lengths.unsqueeze(1) > 0
