"""Condition of the denoiser: three experts and the gate that fuses them (paper eqs. 5-8)."""

# B impressions, D width of the condition, E experts

import logging
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.gated import ConditionConfig, Expert
from cdp_torchrec.interest.output import layer_norm

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusedCondition:
    """What the denoiser is conditioned on."""

    condition: Tensor
    """c, [B, D]."""
    gate_weights: Tensor | None
    """[B, E] in the order of `Condition.experts`; None if the fusion has no gate."""


class Condition(nn.Module):
    """Condition c of every impression (paper eq. 8).

    Role i of the paper is the target item with its attributes.
    """

    def __init__(self, config: ConditionConfig, dims: InterestDims, *, dim: int) -> None:
        """Args: settings, widths of the inputs, and D."""
        super().__init__()
        self.experts = usable_experts(config, dims)
        networks: dict[str, nn.Module] = {}
        for expert in self.experts:
            match expert:
                case "collaborative":
                    networks[expert] = CollaborativeExpert(config, dims, dim=dim)
                case "context":
                    networks[expert] = _two_layers(dims.context, dim)
                case "scene":
                    networks[expert] = _two_layers(dims.scene, dim)
        self.networks = nn.ModuleDict(networks)
        self.fusion = config.fusion
        num_experts = len(self.experts)
        # A softmax over one expert is 1 whatever its weights are.
        gated = config.fusion == "moe" and (num_experts > 1 or config.gate == "sigmoid")
        self.gate_type = config.gate
        self.gate = nn.Linear(num_experts * dim, num_experts, bias=False) if gated else None
        self.concat = _two_layers(num_experts * dim, dim) if config.fusion == "concat_mlp" else None

    def forward(self, inputs: InterestInput) -> FusedCondition:
        """Run the experts (eqs. 5-6), the gate (eq. 7) and the fusion (eq. 8)."""
        outputs = [self._expert_output(expert, inputs) for expert in self.experts]
        if self.concat is not None:
            return FusedCondition(self.concat(torch.cat(outputs, dim=1)), gate_weights=None)
        stacked = torch.stack(outputs, dim=1)
        if self.gate is not None:
            gate_logits = self.gate(stacked.flatten(start_dim=1))
            gate_weights = (
                gate_logits.softmax(dim=1) if self.gate_type == "softmax" else gate_logits.sigmoid()
            )
            return FusedCondition((gate_weights.unsqueeze(2) * stacked).sum(dim=1), gate_weights)
        if self.fusion == "mean":
            return FusedCondition(stacked.mean(dim=1), gate_weights=None)
        return FusedCondition(stacked.sum(dim=1), gate_weights=None)

    def _expert_output(self, expert: Expert, inputs: InterestInput) -> Tensor:
        network = self.networks[expert]
        match expert:
            case "collaborative":
                return network(inputs)
            case "context":
                return network(inputs.context)
            case "scene":
                return network(inputs.scene)

    @torch.no_grad()
    def monitors(self, fused: FusedCondition) -> dict[str, Tensor]:
        """Scalars for the log: mean weight of each expert, entropy of the gate in nats, spread.

        `gate_spread` is the standard deviation of a weight over the impressions, a mean over
        experts in quadrature: near 0, the gate is the same in all contexts.
        """
        weights = fused.gate_weights
        if weights is None:
            return {}
        share = weights / weights.sum(dim=1, keepdim=True)
        monitors = {
            "gate_entropy": torch.special.entr(share).sum(dim=1).mean(),
            "gate_spread": weights.var(dim=0, correction=0).mean().sqrt(),
        }
        for expert, mean in zip(self.experts, weights.mean(dim=0).unbind(), strict=True):
            monitors[f"gate_{expert}"] = mean
        return monitors


class CollaborativeExpert(nn.Module):
    """Query x user x item expert (paper eq. 5); a role of width 0 is left out with its pairs."""

    def __init__(self, config: ConditionConfig, dims: InterestDims, *, dim: int) -> None:
        super().__init__()
        interaction = config.interaction
        self.item_gradient = config.item_gradient
        self.reads_whole_history = config.reads_whole_history
        # The mean in other categories, and log(1 + n).
        of_history = dims.item + 1 if self.reads_whole_history else 0
        widths = {
            "query": dims.query,
            "user": dims.user + of_history,
            "item": dims.item + dims.item_attributes,
        }
        # The Hadamard products need equal widths, so every role is projected to D first.
        self.projections = nn.ModuleDict(
            {role: nn.Linear(width, dim) for role, width in widths.items() if width > 0}
        )
        self.pairs = list(combinations(self.projections, 2)) if interaction != "none" else []
        self.interaction = interaction
        self.bilinear = nn.ModuleList(
            nn.Linear(dim, dim, bias=False) for _ in self.pairs if interaction == "bilinear"
        )
        terms_per_pair = 2 if interaction == "hadamard_difference" else 1
        num_terms = len(self.projections) + terms_per_pair * len(self.pairs)
        self.mlp = _two_layers(num_terms * dim, dim)

    def forward(self, inputs: InterestInput) -> Tensor:
        """c_co, [B, D]."""
        item = inputs.item if self.item_gradient == "flow" else inputs.item.detach()
        features = {
            "query": inputs.query,
            "user": self._user(inputs),
            "item": torch.cat([item, inputs.item_attributes], dim=1),
        }
        roles = {role: layer(features[role]) for role, layer in self.projections.items()}
        terms = list(roles.values())
        for index, (left, right) in enumerate(self.pairs):
            a, b = roles[left], roles[right]
            if self.interaction == "bilinear":
                a = self.bilinear[index](a)
            terms.append(a * b)
            if self.interaction == "hadamard_difference":
                terms.append(a - b)
        return self.mlp(torch.cat(terms, dim=1))

    def _user(self, inputs: InterestInput) -> Tensor:
        if not self.reads_whole_history:
            return inputs.user
        assert inputs.whole is not None and inputs.pool is not None
        # Rounding leaves a little of a sum of which nothing is left.
        count = (inputs.whole.lengths.sum(dim=1) - inputs.pool.lengths.sum(dim=1)).unsqueeze(1)
        sums = (inputs.whole.sums.sum(dim=1) - inputs.pool.sums.sum(dim=1)) * (count > 0)
        mean = layer_norm(sums / count.clamp(min=1.0))
        if self.item_gradient == "stop":
            mean = mean.detach()
        return torch.cat([inputs.user, mean, count.log1p()], dim=1)


def usable_experts(config: ConditionConfig, dims: InterestDims) -> tuple[Expert, ...]:
    """Configured experts whose inputs the dataset has."""
    widths: dict[Expert, int] = {
        "collaborative": dims.query + dims.user + dims.item + dims.item_attributes,
        "context": dims.context,
        "scene": dims.scene,
    }
    return tuple(expert for expert in config.experts if widths[expert] > 0)


def build_condition(config: ConditionConfig, dims: InterestDims, *, dim: int) -> Condition | None:
    """The condition, or None if no expert is left: the ablation "no condition", c = 0.

    What the settings ask for and the log lacks is logged.
    """
    experts = usable_experts(config, dims)
    for expert in config.experts:
        if expert not in experts:
            logger.warning("condition: the log has no %s, so its expert is left out", expert)
    if "collaborative" in experts:
        for role, width in (("query", dims.query), ("user", dims.user)):
            if width == 0:
                logger.warning("condition: the log has no %s, so eq. 5 is without its terms", role)
    return Condition(config, dims, dim=dim) if experts else None


def _two_layers(input_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_dim, dim), nn.ReLU(), nn.Linear(dim, dim))
