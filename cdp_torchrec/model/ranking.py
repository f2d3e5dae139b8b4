"""The dense part of Figure 1a: interest module, cross and deep layers, final MLP."""

# B impressions, D embedding dim

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.data.layout import FeatureLayout, Slot
from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.interest import build_interest
from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    check_output,
)
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.model.behaviour_attributes import BehaviourAttributes
from cdp_torchrec.model.config import InteractionConfig, ModelConfig
from cdp_torchrec.model.cross_net import CrossNet
from cdp_torchrec.model.impression_features import ITEM_KEY, ROLES, Columns, ImpressionFeatures


@dataclass(frozen=True)
class RankingOutput:
    """What the dense part computes for a batch."""

    logits: Tensor
    """[B]"""
    interest: InterestOutput
    """Of the first set, where there are several."""
    sets: tuple["RankingOutput", ...] = ()
    """What each of several sets of embeddings gave; see EmbeddingSets."""


class InteractionArch(nn.Module):
    """Cross layers and deep layers side by side on the same input."""

    def __init__(self, in_features: int, config: InteractionConfig) -> None:
        super().__init__()
        self.cross = CrossNet(in_features, config.num_cross_layers, config.cross_rank)
        self.deep = MLP(in_features, list(config.deep_layer_sizes))
        self.out_features = in_features + config.deep_layer_sizes[-1]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, in_features] -> both results, [B, out_features] if they are put side by side."""
        return self.cross(features), self.deep(features)


class OverArch(nn.Module):
    """Final MLP to one logit (f_DNN of paper eq. 1)."""

    def __init__(self, in_features: int, layer_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = MLP(in_features, list(layer_sizes))
        self.output = nn.Linear(layer_sizes[-1], 1)

    def start_at(self, click_rate: float) -> None:
        """Set the output's bias so that the first probabilities lie around a click rate.

        Otherwise a log with few clicks spends its first steps on learning that they are few.

        Args:
            click_rate: in (0, 1).
        """
        nn.init.constant_(self.output.bias, math.log(click_rate / (1 - click_rate)))

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B]."""
        return self.output(self.mlp(features)).squeeze(1)


class RankingArch(nn.Module):
    """The dense part: everything behind the lookups, on plain tensors."""

    def __init__(self, layout: FeatureLayout, config: ModelConfig) -> None:
        """Build the interest module and the tower.

        Args:
            layout: keys and numbers of the dataset.
            config: the model's configuration.
        """
        super().__init__()
        dim = config.embedding_dim
        self._features = ImpressionFeatures(layout, embedding_dim=dim)
        self.behaviour_attributes = (
            BehaviourAttributes(layout, embedding_dim=dim, init_std=config.embedding_init_std)
            if (layout.attributes or layout.dayparts > 1) and layout.history.has_sequences
            else None
        )
        self.interest: InterestModule = build_interest(config.interest, self._dims(layout, dim))
        excluded = config.interaction.exclude
        self._tower = [f.key for f in self._features.features if f.key not in excluded]
        tower_numbers = [n for n, f in enumerate(layout.numbers) if f.name not in excluded]
        self._tower_numbers = Columns(tower_numbers)
        self.interaction = InteractionArch(
            dim * len(self._tower) + len(tower_numbers), config.interaction
        )
        num_counts = 0 if layout.counts is None else layout.counts.width
        self.over_arch = OverArch(
            self.interaction.out_features + self.interest.interest_dim + num_counts,
            config.over_arch_layer_sizes,
        )
        self._autocast = config.precision == "bfloat16"

    def _dims(self, layout: FeatureLayout, embedding_dim: int) -> InterestDims:
        """Widths of what the interest module gets."""
        attributes = self.behaviour_attributes
        width = self._features.role_width
        return InterestDims(
            user=width["user"],
            query=width["query"],
            item=embedding_dim,
            item_attributes=width["item"],
            context=width["context"],
            scene=width["scene"],
            category=embedding_dim if layout.category_key else 0,
            action=(embedding_dim if layout.has_actions else 0)
            + (0 if attributes is None else attributes.out_features),
            domains=layout.num_domains,
            dayparts=layout.dayparts,
        )

    @property
    def sets(self) -> Sequence["RankingArch"]:
        """The only one, itself; see EmbeddingSets."""
        return (self,)

    def forward(self, embeddings: dict[str, Tensor], batch: DenseInputs) -> RankingOutput:
        """Logits and interest of B impressions.

        Args:
            embeddings: by key: sums of bags and single ids, by their own index, and behaviours.
            batch: everything else.
        """
        with torch.autocast(batch.numbers.device.type, torch.bfloat16, enabled=self._autocast):
            features = self._features(embeddings, batch)
            interest = self.interest(self._interest_input(features, embeddings, batch))
            if not torch.compiler.is_compiling():
                check_output(self.interest, interest, batch_size=len(batch.key))
            tower = [features[k] for k in self._tower] + [self._tower_numbers(batch.numbers)]
            crossed, deep = self.interaction(torch.cat(tower, dim=1))
            parts = [crossed, deep, interest.interest, batch.history_counts.log1p()]
            logits = self.over_arch(torch.cat(parts, dim=1))
        return RankingOutput(logits.float(), interest)

    def interest_input(self, embeddings: dict[str, Tensor], batch: DenseInputs) -> InterestInput:
        """What the interest module sees of B impressions; arguments as in forward."""
        return self._interest_input(self._features(embeddings, batch), embeddings, batch)

    def _interest_input(
        self, features: dict[str, Tensor], embeddings: dict[str, Tensor], batch: DenseInputs
    ) -> InterestInput:
        by_role = {role: self._features.role(role, features, batch.numbers) for role in ROLES}

        def pool(slot: Slot, index: Tensor) -> GatedPool | None:
            return self._features.pool(slot, embeddings, batch, index)

        return InterestInput(
            user=by_role["user"],
            query=by_role["query"],
            item=features[ITEM_KEY],
            item_attributes=by_role["item"],
            context=by_role["context"],
            scene=by_role["scene"],
            key=batch.key,
            progress=batch.progress,
            item_id=batch.item_id,
            category_id=batch.category_id,
            domain_id=batch.domain_id,
            pool=pool("pool", batch.pool_index),
            daypart=pool("daypart", batch.pool_index),
            part=pool("part", batch.pool_index) if self.training else None,
            whole=pool("whole", batch.request_index),
            gated=self._behaviours("gated", embeddings, batch.gated),
            recent=self._behaviours("recent", embeddings, batch.recent),
            stranger=self._behaviours("stranger", embeddings, batch.stranger),
        )

    def _behaviours(
        self, slot: Slot, embeddings: dict[str, Tensor], index: SequenceIndex | None
    ) -> BehaviourSequence | None:
        if index is None:
            return None
        item = embeddings[f"{slot}_item"]
        nothing = item[:, :0]
        action = embeddings.get(f"{slot}_action", nothing)
        if self.behaviour_attributes is not None:
            attributes = self.behaviour_attributes(embeddings, slot, index.attributes)
            action = torch.cat([action, attributes], dim=1)
        return BehaviourSequence(
            item=item,
            category=embeddings.get(f"{slot}_category", nothing),
            action=action,
            index=index,
        )
