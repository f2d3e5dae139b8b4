"""Adaptive Domain Scaling (ADS, SIGIR 2025, arXiv 2502.05523): behaviours and queries by domain.

What a behaviour says and what a target asks for differ between the domains that one user visits.
Two modules generate both from the domain: PSRG the weights of a small network that each behaviour
passes through, PCRG several queries for each target. Target attention relates them. The networks
that generate are meta-networks, one shared by all domains and one of each domain's own.
"""

# B impressions, L behaviours, X rows (requests or impressions), W rows of a block, N its length,
# F width of item and category, M hidden width of a meta-network, H of the generated network,
# Q queries of a target, K domains

import logging

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import SequenceBlock
from cdp_torchrec.interest.attention import (
    TargetAttention,
    find_all,
    item_features,
    target_features,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import AdsConfig
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.sequence import BehaviourSequence

logger = logging.getLogger(__name__)


class AdsInterest(InterestModule):
    """The interest is the attention of the generated queries over the modulated behaviours.

    Which feature is the domain the dataset says (`Schema.domain_feature`). Without one there are no
    private networks; without any scene feature behaviours stay as they are, and the target alone
    makes the queries.
    """

    def __init__(self, config: AdsConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        dim, num_domains = dims.item + dims.category, min(dims.domains, config.max_domains)
        if num_domains == 0:
            logger.warning(
                "ads: the log has no id of role scene and level request, so all requests are of "
                "one domain"
            )
        self.behaviours: BehaviourModulation | None = None
        if dims.scene or num_domains:
            self.behaviours = BehaviourModulation(
                config, dim=dim, scene_dim=dims.scene, num_domains=num_domains
            )
        self.queries = MetaNetworks(
            in_dim=dim + dims.scene,
            hidden_dim=config.meta_dim,
            out_dim=config.num_queries * dim,
            num_domains=num_domains,
        )
        self.attention = TargetAttention(
            config, dims, norm=config.embedding_norm, num_queries=config.num_queries
        )
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the attended history, [B, interest_dim]."""
        recent, norm = inputs.recent, self.config.embedding_norm
        assert recent is not None, missing("recent")
        domain = inputs.domain_id
        if domain is None:
            domain = torch.zeros_like(inputs.item_id)
        target = target_features(inputs, category_dim=self.category_dim, norm=norm)
        # PCRG. The target itself is in each of its queries: ours.
        generated = self.queries(torch.cat([target, inputs.scene], dim=1), domain)
        queries = target.repeat(1, self.config.num_queries) + generated
        features = item_features(recent, norm=norm)
        if self.behaviours is not None:
            features = self.behaviours(features, recent, scene=inputs.scene, domain=domain)
        interest = self.attention(queries, features, recent, find_all)
        return InterestOutput(interest=self.vector(interest, inputs.item))


class BehaviourModulation(nn.Module):
    """PSRG: e + W_2 relu(W_1 e + b_1) + b_2 with W and b generated from domain and scene.

    The sum with e is ours, and W_2 and b_2 start at 0: training begins with plain attention.
    """

    def __init__(self, config: AdsConfig, *, dim: int, scene_dim: int, num_domains: int) -> None:
        """Args: settings, F, and widths of what the weights are generated from."""
        super().__init__()
        hidden = config.generated_dim
        self.sizes = [dim * hidden, hidden, hidden * dim, dim]
        self.generated = (dim, hidden)
        self.meta = MetaNetworks(
            in_dim=scene_dim,
            hidden_dim=config.meta_dim,
            out_dim=sum(self.sizes),
            num_domains=num_domains,
        )
        self.meta.start_at_zero(first=dim * hidden + hidden)

    def forward(
        self, features: Tensor, sequence: BehaviourSequence, *, scene: Tensor, domain: Tensor
    ) -> Tensor:
        """Behaviours as their request's domain reads them, [L, F].

        Args:
            features: behaviours, [L, F].
            sequence: which of them belong to which request.
            scene: [B, D_scene]; requests have one.
            domain: codes, int64 [B]; requests have one.
        """
        first = sequence.index.first_impression

        def modulate(block: SequenceBlock, behaviours: Tensor) -> Tensor:
            request = first.index_select(0, block.sequence)
            weights = self.meta(scene.index_select(0, request), domain.index_select(0, request))
            w_1, b_1, w_2, b_2 = weights.split(self.sizes, dim=1)
            dim, width = self.generated
            hidden = behaviours @ w_1.unflatten(1, (dim, width)) + b_1.unsqueeze(1)
            added = hidden.relu() @ w_2.unflatten(1, (width, dim)) + b_2.unsqueeze(1)
            return behaviours + added

        return sequence.per_behaviour(modulate, features)


class MetaNetworks(nn.Module):
    """Sum of a network that all domains share and of the domain's own, [X, in] -> [X, out].

    The private networks stand side by side, and all units of other domains are 0: a domain has an
    output bias of its own, and first layers that nobody else trains.
    """

    def __init__(self, *, in_dim: int, hidden_dim: int, out_dim: int, num_domains: int) -> None:
        """Args: widths (in_dim may be 0), and K; not both in_dim and num_domains may be 0."""
        super().__init__()
        self.num_domains = num_domains
        self.shared: nn.Sequential | None = None
        if in_dim:
            self.shared = _two_layers(in_dim, hidden_dim, out_dim)
        self.private_hidden: nn.Linear | None = None
        self.private_output: nn.Linear | None = None
        if num_domains:
            if in_dim:
                self.private_hidden = nn.Linear(in_dim, num_domains * hidden_dim)
            units = num_domains * (1 + (hidden_dim if in_dim else 0))
            self.private_output = nn.Linear(units, out_dim, bias=False)

    def start_at_zero(self, *, first: int) -> None:
        """Set the outputs from place `first` on to 0 for all inputs."""
        outputs = [self.private_output, None if self.shared is None else self.shared[-1]]
        for layer in outputs:
            if isinstance(layer, nn.Linear):
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter[first:])

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """[X, out].

        Args:
            x: what the networks read, [X, in].
            domain: whose network, int64 [X]; codes beyond K share networks.
        """
        parts = []
        if self.shared is not None:
            parts.append(self.shared(x))
        if self.private_output is not None:
            numbers = torch.arange(self.num_domains, device=domain.device)
            own = (domain.unsqueeze(1) % self.num_domains == numbers).to(x.dtype)  # [X, K]
            units = [own]
            if self.private_hidden is not None:
                hidden = self.private_hidden(x).relu().unflatten(1, (self.num_domains, -1))
                units.append((hidden * own.unsqueeze(2)).flatten(1))
            parts.append(self.private_output(torch.cat(units, dim=1)))
        return torch.stack(parts).sum(dim=0)


def _two_layers(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))
