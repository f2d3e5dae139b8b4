"""The model of a description: its tables, and the layers that read them, on the meta device."""

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DenseArch, InteractionArch, OverArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cdp_torchrec.planning.outside_config import DescribedModelConfig

# B impressions, F features, D their width

_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
_META = torch.device("meta")


class DescribedModel(nn.Module):
    """A DLRM, or what is like one, with tables of any width."""

    def __init__(self, config: DescribedModelConfig) -> None:
        """Declare tables and layers without memory for them."""
        super().__init__()
        self.embedding_bag_collection = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=name,
                    num_embeddings=table.rows,
                    embedding_dim=table.width or config.embedding_dim,
                    feature_names=list(config.features_of(name)),
                    data_type=_DATA_TYPES[table.precision],
                )
                for name, table in config.tables.items()
            ],
            device=_META,
        )
        layers = list(config.dense_arch_layer_sizes)
        self.dense_arch = DenseArch(config.dense_features, layers, _META) if layers else None
        widths = [
            table.width or config.embedding_dim
            for name, table in config.tables.items()
            for _ in config.features_of(name)
        ]
        dense_width = layers[-1] if layers else 0
        width = sum(widths) + dense_width
        self.dot = self.crossnet = None
        if config.interaction == "dot":
            self.dot = InteractionArch(len(widths))
            width = dense_width + len(widths) * (len(widths) + 1) // 2
        elif config.interaction == "dcn":
            self.crossnet = LowRankCrossNet(
                width, num_layers=config.cross_layers, low_rank=config.cross_rank
            ).to(_META)
        self.over_arch = OverArch(width, list(config.over_arch_layer_sizes), _META)

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """Logits of all tasks, [B, tasks].

        Args:
            dense: dense features, [B, dense_features].
            sparse: ids of all features, stride B.
        """
        pooled = self.embedding_bag_collection(sparse).values().float()  # [B, sum of widths]
        if self.dense_arch is None:
            joined = pooled
        else:
            embedded = self.dense_arch(dense)  # [B, D]
            if self.dot is not None:
                features = pooled.reshape(len(dense), -1, embedded.shape[1])  # [B, F, D]
                return self.over_arch(self.dot(embedded, features))
            joined = torch.cat([embedded, pooled], dim=1)
        return self.over_arch(joined if self.crossnet is None else self.crossnet(joined))
