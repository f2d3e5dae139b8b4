"""What was looked up and read for a batch, as features of each impression."""

# B impressions, D embedding dim, K recency segments

import torch
from torch import Tensor, nn

from cdp_torchrec.data.layout import FeatureLayout, Slot
from cdp_torchrec.data.model_inputs import DenseInputs
from cdp_torchrec.data.schema import Role
from cdp_torchrec.interest.base import GatedPool

ITEM_KEY = "item_id"
ROLES: tuple[Role, ...] = ("user", "query", "item", "context", "scene")


class ImpressionFeatures(nn.Module):
    """Features, roles and pooled histories among the embeddings and numbers of a batch.

    Has no parameters: it knows which key or column is what.
    """

    def __init__(self, layout: FeatureLayout, *, embedding_dim: int) -> None:
        """Args: keys and numbers of the dataset, and D."""
        super().__init__()
        self._embedding_dim = embedding_dim
        self.features = [f for f in layout.features if not f.is_history]
        self._per_request = [f.key for f in self.features if f.slot == "request"]
        # The category first: modules compare it with the category of a behaviour.
        first = sorted(self.features, key=lambda f: f.key != layout.category_key)
        self._by_role = {
            role: [f.key for f in first if f.role == role and f.key != ITEM_KEY] for role in ROLES
        }
        numbers = {
            role: [n for n, f in enumerate(layout.numbers) if f.role == role] for role in ROLES
        }
        self._numbers = nn.ModuleDict({role: Columns(found) for role, found in numbers.items()})
        self._bag_column = {f.key: column for column, f in enumerate(layout.bags)}
        self._pooled: dict[Slot, list[str]] = {}
        for feature in (f for f in layout.bags if f.is_history):
            self._pooled.setdefault(feature.slot, []).append(feature.key)
        self._pooled_lengths = nn.ModuleDict(
            {
                slot: Columns([self._bag_column[key] for key in keys])
                for slot, keys in self._pooled.items()
            }
        )
        self.role_width = {
            role: embedding_dim * len(self._by_role[role]) + len(numbers[role]) for role in ROLES
        }

    def forward(self, embeddings: dict[str, Tensor], batch: DenseInputs) -> dict[str, Tensor]:
        """Embeddings of all features but the history for each impression, [B, D] by key.

        Args:
            embeddings: by key: sums of bags and single ids, by their own index.
            batch: everything else.
        """
        features = {f.key: embeddings[f.key] for f in self.features}
        for feature in self.features:
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

    def role(self, role: Role, features: dict[str, Tensor], numbers: Tensor) -> Tensor:
        """All of a role but the item's own id, [B, role_width[role]].

        Args:
            role: its name.
            features: what `forward` gives.
            numbers: those of the batch.
        """
        parts = [features[key] for key in self._by_role[role]]
        return torch.cat([*parts, self._numbers[role](numbers)], dim=1)

    def pool(
        self, slot: Slot, embeddings: dict[str, Tensor], batch: DenseInputs, index: Tensor
    ) -> GatedPool | None:
        """Pooled history of each impression, sums [B, K, D]; None if the module reads none.

        Args:
            slot: which history.
            embeddings: as in `forward`.
            batch: as in `forward`.
            index: of each impression's row among the sums, int64 [B].
        """
        if slot not in self._pooled:
            return None
        sums = torch.stack([embeddings[key] for key in self._pooled[slot]], dim=1)
        lengths = self._pooled_lengths[slot](batch.bag_lengths)
        return GatedPool(sums=sums.index_select(0, index), lengths=lengths.index_select(0, index))


class Columns(nn.Module):
    """Some columns of a matrix; nothing is copied where they are neighbours."""

    def __init__(self, places: list[int]) -> None:
        """Args: numbers of the columns."""
        super().__init__()
        first, stop = (places[0], places[-1] + 1) if places else (0, 0)
        self.neighbours = slice(first, stop) if places == list(range(first, stop)) else None
        self.register_buffer("places", torch.tensor(places, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N] -> [B, number of places]."""
        if self.neighbours is not None:
            return x[:, self.neighbours]
        return x.index_select(1, self.places)
