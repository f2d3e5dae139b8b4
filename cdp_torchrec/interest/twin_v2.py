"""TWIN-V2 (CIKM 2024, arXiv 2407.16357): TWIN over clusters of behaviours, for lives of users.

The dataset's preparation groups each user's behaviours (`data/history/behaviour_clusters.py`); a
cluster stands for its members with the item in their middle and their mean age. Attention is aware
of their number (cluster-aware target attention): a cluster of n weighs as much as n equal
behaviours.
"""

# L clusters, H heads

from torch import Tensor

from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.twin import TwinInterest


class TwinV2Interest(TwinInterest):
    """The interest is softmax(score + ln n) over the clusters that it weighs most.

    ln n is part of TWIN's bias, and so in the search (GSU) and in the attention (ESU) alike. It is
    TWIN itself where all clusters have one member, and does without a category or action types as
    TWIN does.
    """

    def _bias(self, action: Tensor, sequence: BehaviourSequence) -> Tensor:
        """TWIN's bias and ln n, [L, H]."""
        size = sequence.index.size
        assert size is not None
        return super()._bias(action, sequence) + size.log().unsqueeze(1)
