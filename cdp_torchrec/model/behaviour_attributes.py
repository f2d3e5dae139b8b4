"""Attributes of behaviours as vectors, beside the action type: dwell time, price, tags, daypart."""

# L behaviours, D embedding dim, N numbers, A columns of the attributes of a batch, P dayparts

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cdp_torchrec.data.layout import FeatureLayout


class BehaviourAttributes(nn.Module):
    """A vector of width D for each attribute: of one id its embedding, of several their mean.

    The last one is of the part of the day, where behaviours are told apart by it.
    A number is multiplied by a vector of its own (FuxiCTR's numeric embedding), so that it begins
    as large as an embedding, and a module that norms its inputs does not see it alone. A behaviour
    without any of several ids, or with a missing number, gets zeros.
    """

    def __init__(self, layout: FeatureLayout, *, embedding_dim: int, init_std: float) -> None:
        """Declare the vectors of the numbers and of the parts of the day.

        Args:
            layout: attributes of the dataset, and dayparts.
            embedding_dim: D.
            init_std: standard deviation of initial vectors.
        """
        super().__init__()
        self._attributes = layout.attributes
        self.out_features = embedding_dim * (len(layout.attributes) + (layout.dayparts > 1))
        self._num_numbers = sum(a.kind == "number" for a in layout.attributes)

        def vectors(count: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, embedding_dim).normal_(std=init_std))

        self.numbers = vectors(self._num_numbers) if self._num_numbers else None
        self.dayparts = vectors(layout.dayparts) if layout.dayparts > 1 else None

    def forward(self, embeddings: Mapping[str, Tensor], slot: str, values: Tensor | None) -> Tensor:
        """Vectors of all attributes one after the other, [L, out_features].

        Args:
            embeddings: [L, D] by key.
            slot: form of the history.
            values: SequenceIndex.attributes, [L, A].
        """
        found = []
        number, filled = 0, self._num_numbers
        for attribute in self._attributes:
            if attribute.kind == "id":
                found.append(embeddings[f"{slot}_{attribute.file}"])
                continue
            assert values is not None
            if attribute.kind == "number":
                assert self.numbers is not None
                found.append(values[:, number, None] * self.numbers[number])
                number += 1
                continue
            ids = torch.stack([embeddings[f"{slot}_{c}"] for c in attribute.columns], dim=1)
            own = values[:, filled : filled + attribute.max_ids]
            filled += attribute.max_ids
            count = own.sum(dim=1, keepdim=True).clamp(min=1)
            found.append((ids * own.unsqueeze(2)).sum(dim=1) / count)
        if self.dayparts is not None:
            assert values is not None
            found.append(values[:, filled:] @ self.dayparts)
        return torch.cat(found, dim=1)
