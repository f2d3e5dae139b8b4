"""Deep Interest Network (DIN, KDD 2018, arXiv 1706.06978): each behaviour weighed by the target.

The paper's mini-batch-aware regularisation belongs to the optimizer and its Dice activation is left
out: Dice normalises with statistics of the batch, so a score would depend on the other impressions
of its batch and on the number of ranks. PReLU is the paper's other choice.
"""

# B impressions, L behaviours, W rows of a block, C candidates in a row, N behaviours in a row,
# D width of an item, F width of item and category, X width of a behaviour's own features,
# H hidden units

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.attention import (
    item_features,
    scaled,
    target_features,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import ActivationUnitConfig, DinConfig
from cdp_torchrec.interest.eager import is_eager_on_cpu
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.sequence import BehaviourSequence, masked_softmax, present

_AGE_DIM = 8
_PAIRS_AT_ONCE = 1 << 14
"""Pairs of a candidate and a behaviour; 4 MiB of 64 hidden units."""
_SHORT = 40
"""Up to so many behaviours, a vector of each pair is cheaper than a matrix of each candidate."""


class DinInterest(InterestModule):
    """The interest is sum_j a(e_j, v) e_j (paper eq. 3), over the items e_j of the history.

    Without a category, items are compared by their embeddings alone; without action types, they
    are left out.
    """

    def __init__(self, config: DinConfig, dims: InterestDims) -> None:
        super().__init__()
        self.attention = DinAttention(config.attention, dims)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the attended history, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        interest = self.attention(inputs, inputs.recent)
        return InterestOutput(interest=self.vector(interest, inputs.item))


class DinAttention(nn.Module):
    """Weighted sum of the items of a sequence, for the target item."""

    def __init__(self, config: ActivationUnitConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.item_dim = dims.item
        self.category_dim = dims.category
        self.reads_action = "action" in config.score_features
        self.age = AgeEmbedding(dim=_AGE_DIM) if "age" in config.score_features else None
        own_dim = (dims.action if self.reads_action else 0) + (_AGE_DIM if self.age else 0)
        self.unit = ActivationUnit(config, dim=dims.item + dims.category, own_dim=own_dim)

    def forward(self, inputs: InterestInput, sequence: BehaviourSequence) -> Tensor:
        """Interest in the target from these behaviours, zeros without any, [B, D]."""
        target = target_features(
            inputs, category_dim=self.category_dim, norm=self.config.embedding_norm
        )
        features = self._features(sequence)

        def attend(block: CandidateBlock, targets: Tensor, behaviours: Tensor) -> Tensor:
            kept = present(block, features.shape[0])
            if not is_eager_on_cpu(targets):
                return self._weighted_sum(targets, behaviours, kept)
            num_rows = _rows_at_once(targets, behaviours)
            rows = zip(*(x.split(num_rows) for x in (targets, behaviours, kept)), strict=True)
            return torch.cat([self._weighted_sum(*some) for some in rows])

        return sequence.per_candidate(
            attend, sequence.candidates(target), sequence.behaviours(features)
        )

    def _weighted_sum(self, targets: Tensor, behaviours: Tensor, kept: Tensor) -> Tensor:
        """The attended items of some rows, [W, C, D], from tensors [W, ...]."""
        scores = self.unit(targets, behaviours)
        match self.config.normalise:
            case "softmax":
                weights = masked_softmax(scores, kept.unsqueeze(1))
            case "none":
                weights = scores.masked_fill(~kept.unsqueeze(1), 0.0)
        return weights @ behaviours[:, :, : self.item_dim]

    def _features(self, sequence: BehaviourSequence) -> Tensor:
        """Item and category, what only a behaviour has, and a 1 for the constant, [L, F + X + 1].

        The 1 of a place of padding is a 0, which changes scores that are left out.
        """
        features = [item_features(sequence, norm=self.config.embedding_norm)]
        if self.reads_action:
            features.append(scaled(sequence.action, self.config.embedding_norm))
        if self.age is not None:
            features.append(self.age(sequence.index.age))
        features.append(torch.ones_like(features[0][:, :1]))
        return torch.cat(features, dim=1)


def _rows_at_once(targets: Tensor, behaviours: Tensor) -> int:
    """Rows whose hidden units a CPU keeps in its cache."""
    num_pairs = targets.shape[1] * behaviours.shape[1]
    return max(1, _PAIRS_AT_ONCE // num_pairs)


class ActivationUnit(nn.Module):
    """MLP([v, e, v - e, v * e, x]) of a target v and a behaviour e with features x of its own.

    The first layer is linear in e once v is known: with its weights split as W_v .. W_x,

        v W_v + e W_e + (v - e) W_d + (v * e) W_p + x W_x + b
            = [e, x, 1] [diag(v) W_p + W_e - W_d; W_x; v (W_v + W_d) + b],

    so it is one matrix per candidate times the behaviours that candidates share, and no vector of
    a (candidate, behaviour) pair is made before the hidden units. For a short history that matrix
    is larger than what it is multiplied with: then v * e is made for each pair, and only the rest
    is shared, as [e, x] [W_e - W_d; W_x] of a behaviour and v (W_v + W_d) + b of a candidate.
    """

    def __init__(self, config: ActivationUnitConfig, *, dim: int, own_dim: int) -> None:
        super().__init__()
        sizes = config.layer_sizes
        self.split = [dim, dim, dim, dim, own_dim]
        self.first = nn.Linear(sum(self.split), sizes[0])
        self.layers = nn.ModuleList(
            nn.Linear(width, next_width)
            for width, next_width in zip(sizes, [*sizes[1:], 1], strict=True)
        )
        if config.normalise == "softmax":
            # The same for all scores, it would cancel.
            self.layers[-1].register_parameter("bias", None)
        self.activation = config.activation
        self.slopes = nn.ParameterList(
            torch.full((width,), 0.25) for width in sizes if config.activation == "prelu"
        )

    def forward(self, target: Tensor, behaviours: Tensor) -> Tensor:
        """Scores, [W, C, N].

        Args:
            target: [W, C, F].
            behaviours: [W, N, F + X + 1].
        """
        num_rows, num_candidates, _ = target.shape
        length = behaviours.shape[1]
        # A length that a compiled program leaves open is no reason for two programs.
        if isinstance(length, int) and length <= _SHORT:
            hidden = self._of_pairs(target, behaviours)
        else:
            hidden = self._of_candidates(target, behaviours)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            # In place, and so before the view: in a view, the backward pass would copy it.
            match self.activation:
                case "relu":
                    hidden = layer(hidden.relu_().view(-1, layer.in_features))
                case "sigmoid":
                    hidden = layer(hidden.sigmoid_().view(-1, layer.in_features))
                case "prelu":
                    hidden = hidden.view(-1, layer.in_features)
                    hidden = _prelu_linear(hidden, self.slopes[index], layer)
        return hidden.view(num_rows, -1, num_candidates).transpose(1, 2)

    def _of_candidates(self, target: Tensor, behaviours: Tensor) -> Tensor:
        """Hidden units before their activation, by a matrix per candidate, [W, N, C * H]."""
        num_rows = target.shape[0]
        target = target.flatten(0, 1)
        w_v, w_e, w_d, w_p, w_x = self.first.weight.t().split(self.split)
        # Row f of the matrix is [v_f, 1] [W_p; W_e - W_d]_f: a product for each f, [F, W * C, H].
        pairs = torch.stack([target.t(), torch.ones_like(target.t())], dim=2)
        compared = pairs @ torch.stack([w_p, w_e - w_d], dim=1)
        own = w_x.unsqueeze(1).expand(-1, target.shape[0], -1)
        constant = torch.addmm(self.first.bias, target, w_v + w_d).unsqueeze(0)
        matrix = torch.cat([compared, own, constant])
        return behaviours @ matrix.view(matrix.shape[0], num_rows, -1).transpose(0, 1)

    def _of_pairs(self, target: Tensor, behaviours: Tensor) -> Tensor:
        """The same, by a vector per pair, [W * N * C, H]."""
        w_v, w_e, w_d, w_p, w_x = self.first.weight.t().split(self.split)
        shared = behaviours[:, :, :-1] @ torch.cat([w_e - w_d, w_x])
        of_target = target @ (w_v + w_d) + self.first.bias
        both = shared.unsqueeze(2) + of_target.unsqueeze(1)
        pairs = behaviours[:, :, : self.split[0]].unsqueeze(2) * target.unsqueeze(1)
        return torch.addmm(both.flatten(0, 2), pairs.flatten(0, 2), w_p)


def _prelu_linear(x: Tensor, slope: Tensor, layer: nn.Linear) -> Tensor:
    """layer(prelu(x)) with prelu(x) = slope * x + (1 - slope) * relu(x), [P, H] -> [P, H'].

    Slopes go to the weights of the layer, so that no pass over x multiplies with them; PyTorch's
    own PReLU takes most of the time of the backward pass.
    """
    linear = functional.linear(x, layer.weight * slope, layer.bias)
    return linear + functional.linear(x.relu(), layer.weight * (1 - slope))
