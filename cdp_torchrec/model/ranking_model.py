"""The whole ranking model: lookups in tables, then the dense part."""

# B impressions

from torch import nn

from cdp_torchrec.data.batch import Batch
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.model.embedding_sets import build_ranking_arch
from cdp_torchrec.model.ranking import RankingOutput
from cdp_torchrec.model.sparse_arch import SparseArch


class RankingModel(nn.Module):
    """Lookups, then the dense part.

    `forward` is traced by the train pipeline, so it holds no Python control flow on data.
    """

    def __init__(self, layout: FeatureLayout, config: ModelConfig) -> None:
        """Declare the model; tables are on the meta device until they are sharded.

        Args:
            layout: tables and keys of the dataset.
            config: the model's configuration.
        """
        super().__init__()
        self.sparse_arch = SparseArch(layout, embedding_dim=config.embedding_dim)
        self.ranking_arch = build_ranking_arch(layout, config)
        self.is_compiled = config.compile
        if self.is_compiled:
            self.ranking_arch.compile()

    def forward(self, batch: Batch) -> RankingOutput:
        """Logits and interest of a batch."""
        return self.ranking_arch(self.sparse_arch(batch.sparse, batch.sequence), batch)
