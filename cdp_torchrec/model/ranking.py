"""The dense part of Figure 1a: interest module, cross and deep layers, final MLP."""

# B impressions, D embedding dim

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from cdp_torchrec.data.layout import FeatureLayout, Slot
from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.data.schema import Role
from cdp_torchrec.data.sequence_index import SequenceIndex
from cdp_torchrec.interest import build_interest
from cdp_torchrec.interest.base import (
    GatedPool,
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
)
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.model.behaviour_attributes import BehaviourAttributes
from cdp_torchrec.model.config import InteractionConfig, ModelConfig
from cdp_torchrec.model.cross_net import CrossNet

ITEM_KEY = "item_id"
_ROLES: tuple[Role, ...] = ("user", "query", "item", "context", "scene")


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
        self._bag_column = {f.key: column for column, f in enumerate(layout.bags)}
        pooled: dict[Slot, list[str]] = {}
        for feature in (f for f in layout.bags if f.is_history):
            pooled.setdefault(feature.slot, []).append(feature.key)
        self._pooled = pooled
        self._pooled_lengths = nn.ModuleDict(
            {
                slot: _Columns([self._bag_column[key] for key in keys])
                for slot, keys in pooled.items()
            }
        )
        self._embedding_dim = config.embedding_dim
        columns = [f for f in layout.features if not f.is_history]
        self._columns = columns
        self._per_request = [f.key for f in columns if f.slot == "request"]
        # The category first: modules compare it with the category of a behaviour.
        first = sorted(columns, key=lambda f: f.key != layout.category_key)
        self._by_role = {
            role: [f for f in first if f.role == role and f.key != ITEM_KEY] for role in _ROLES
        }
        numbers = {
            role: [n for n, f in enumerate(layout.numbers) if f.role == role] for role in _ROLES
        }
        self._numbers = nn.ModuleDict({role: _Columns(found) for role, found in numbers.items()})
        self._tower = [f.key for f in columns if f.key not in config.interaction.exclude]
        tower_numbers = [
            n for n, f in enumerate(layout.numbers) if f.name not in config.interaction.exclude
        ]
        self._tower_numbers = _Columns(tower_numbers)
        dim = config.embedding_dim
        self.behaviour_attributes = (
            BehaviourAttributes(layout, embedding_dim=dim, init_std=config.embedding_init_std)
            if (layout.attributes or layout.dayparts > 1) and layout.history.has_sequences
            else None
        )
        width = {r: dim * len(self._by_role[r]) + len(numbers[r]) for r in _ROLES}
        self.interest: InterestModule = build_interest(
            config.interest,
            InterestDims(
                user=width["user"],
                query=width["query"],
                item=dim,
                item_attributes=width["item"],
                context=width["context"],
                scene=width["scene"],
                category=dim if layout.category_key else 0,
                action=(dim if layout.has_actions else 0) + self._attribute_dim,
                domains=layout.num_domains,
                dayparts=layout.dayparts,
            ),
        )
        num_counts = 0 if layout.count_segments is None else 2 * len(layout.count_segments) + 2
        self.interaction = InteractionArch(
            dim * len(self._tower) + len(tower_numbers), config.interaction
        )
        self.over_arch = OverArch(
            self.interaction.out_features + self.interest.interest_dim + num_counts,
            config.over_arch_layer_sizes,
        )
        self._autocast = config.precision == "bfloat16"

    @property
    def sets(self) -> Sequence["RankingArch"]:
        """The only one, itself; see EmbeddingSets."""
        return (self,)

    @property
    def _attribute_dim(self) -> int:
        return 0 if self.behaviour_attributes is None else self.behaviour_attributes.out_features

    def forward(self, embeddings: dict[str, Tensor], batch: DenseInputs) -> RankingOutput:
        """Logits and interest of B impressions.

        Args:
            embeddings: by key: sums of bags and single ids, by their own index, and behaviours.
            batch: everything else.
        """
        with torch.autocast(batch.numbers.device.type, torch.bfloat16, enabled=self._autocast):
            features = self._features(embeddings, batch)
            interest = self.interest(self._interest_input(features, embeddings, batch))
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
        by_role = {r: self._role(r, features, batch.numbers) for r in _ROLES}
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
            pool=self._pool("pool", embeddings, batch, batch.pool_index),
            daypart=self._pool("daypart", embeddings, batch, batch.pool_index),
            part=(
                self._pool("part", embeddings, batch, batch.pool_index) if self.training else None
            ),
            whole=self._pool("whole", embeddings, batch, batch.request_index),
            gated=self._behaviours("gated", embeddings, batch.gated),
            recent=self._behaviours("recent", embeddings, batch.recent),
            stranger=self._behaviours("stranger", embeddings, batch.stranger),
        )

    def _features(self, embeddings: dict[str, Tensor], batch: DenseInputs) -> dict[str, Tensor]:
        """Embeddings of all features but the history for each impression, [B, D] by key."""
        features = {f.key: embeddings[f.key] for f in self._columns}
        for feature in self._columns:
            if feature.is_bag:
                length = batch.bag_lengths[:, self._bag_column[feature.key], None]
                features[feature.key] = features[feature.key] / length.clamp(min=1)
        if self._per_request:
            # One gather for all of them: its backward is a scatter, the dearest part of the step.
            together = torch.cat([features[key] for key in self._per_request], dim=1)
            spread = together.index_select(0, batch.request_index)
            features.update(
                zip(self._per_request, spread.split(self._embedding_dim, dim=1), strict=True)
            )
        return features

    def _pool(
        self, slot: Slot, embeddings: dict[str, Tensor], batch: DenseInputs, index: Tensor
    ) -> GatedPool | None:
        if slot not in self._pooled:
            return None
        sums = torch.stack([embeddings[key] for key in self._pooled[slot]], dim=1)
        lengths = self._pooled_lengths[slot](batch.bag_lengths)
        return GatedPool(sums=sums.index_select(0, index), lengths=lengths.index_select(0, index))

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

    def _role(self, role: Role, features: dict[str, Tensor], numbers: Tensor) -> Tensor:
        parts = [features[f.key] for f in self._by_role[role]]
        return torch.cat([*parts, self._numbers[role](numbers)], dim=1)


class _Columns(nn.Module):
    """Some columns of a matrix; nothing is copied where they are neighbours."""

    def __init__(self, places: list[int]) -> None:
        super().__init__()
        first, stop = (places[0], places[-1] + 1) if places else (0, 0)
        self.neighbours = slice(first, stop) if places == list(range(first, stop)) else None
        self.register_buffer("places", torch.tensor(places, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N] -> [B, number of places]."""
        if self.neighbours is not None:
            return x[:, self.neighbours]
        return x.index_select(1, self.places)
