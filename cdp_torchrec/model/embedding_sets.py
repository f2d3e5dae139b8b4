"""Several sets of embeddings, each with an interest module and a tower of its own.

Multi-embedding: Guo et al., On the Embedding Collapse when Scaling up Recommendation Models (ICML
2024, arXiv 2310.04400). There the sets meet before the final MLP; here each set is a whole model
with a click loss of its own, and the logit is the mean of theirs, so that what one training owes to
chance falls with the number of sets.
"""

# B impressions, S sets, D embedding dim of the tables

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.model.config import ModelConfig
from cdp_torchrec.model.ranking import RankingArch, RankingOutput


class EmbeddingSets(nn.Module):
    """The dense part S times, each on D / S columns of every table."""

    def __init__(self, layout: FeatureLayout, config: ModelConfig) -> None:
        """Build all sets.

        Args:
            layout: keys and numbers of the dataset.
            config: the model's configuration; its sets divide the columns of the tables.

        Raises:
            ConfigError: a module does not fit the width of a set.
        """
        super().__init__()
        self._width = config.embedding_dim // config.num_embedding_sets
        own = config.model_copy(update={"embedding_dim": self._width, "num_embedding_sets": 1})
        count = range(config.num_embedding_sets)
        try:
            self._archs = nn.ModuleList([RankingArch(layout, own) for _ in count])
        except ConfigError as error:
            # To a set, its own columns are the width of the tables.
            raise ConfigError(
                f"{error} (of model.embedding_dim = {config.embedding_dim}, each of "
                f"model.num_embedding_sets = {config.num_embedding_sets} has {self._width})"
            ) from error

    @property
    def sets(self) -> Sequence[RankingArch]:
        """The dense part of each set."""
        return cast(Sequence[RankingArch], self._archs)

    def forward(self, embeddings: Mapping[str, Tensor], batch: DenseInputs) -> RankingOutput:
        """Mean logits of B impressions, and what each set computed.

        Args:
            embeddings: as of RankingArch, D wide.
            batch: everything else.
        """
        columns = {key: values.split(self._width, dim=1) for key, values in embeddings.items()}
        outputs = tuple(
            arch({key: parts[place] for key, parts in columns.items()}, batch)
            for place, arch in enumerate(self.sets)
        )
        logits = torch.stack([output.logits for output in outputs]).mean(dim=0)
        return RankingOutput(logits, outputs[0].interest, outputs)


def build_ranking_arch(layout: FeatureLayout, config: ModelConfig) -> RankingArch | EmbeddingSets:
    """The dense part that a configuration asks for."""
    arch = RankingArch if config.num_embedding_sets == 1 else EmbeddingSets
    return arch(layout, config)
