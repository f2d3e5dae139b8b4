"""Search-based Interest Model (SIM, CIKM 2020, arXiv 2006.05639): search first, then attend.

A general search unit (GSU) finds the behaviours that matter for the target in a long history, an
exact search unit (ESU) attends to them with the time since each, and a DIN always reads the recent
short history beside. Search is over the whole history; the paper keeps the recent part out of it.
"""

# B impressions, L behaviours, F width of item and category

import logging

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.attention import (
    Search,
    TargetAttention,
    find_all,
    item_features,
    search_by_product,
    search_vectors,
    target_features,
)
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.attention import SimConfig
from cdp_torchrec.interest.din import DinAttention
from cdp_torchrec.interest.output import InterestVector
from cdp_torchrec.interest.recent_sequence import only_recent
from cdp_torchrec.interest.sequence import BehaviourSequence

logger = logging.getLogger(__name__)


class SimInterest(InterestModule):
    """The interest is [ESU over the searched behaviours; DIN over the recent ones].

    Without a category, hard search finds the whole history. Without action types, behaviours are
    their items, categories and ages.
    """

    def __init__(self, config: SimConfig, dims: InterestDims) -> None:
        super().__init__()
        self.config = config
        self.category_dim = dims.category
        dim = dims.item + dims.category
        # Paper section 3.2; the action type beside the time since is ours.
        self.esu = TargetAttention(config, dims, norm=config.embedding_norm)
        self.short = DinAttention(config.short, dims)
        self.vector = InterestVector(config, dim=dims.item)
        self.interest_dim = 2 * self.vector.width
        self.gsu: SoftSearchUnit | None = None
        if config.search == "soft":
            self.gsu = SoftSearchUnit(config, dim=dim)
            self.loss_weights = {"search_loss": config.search_loss_weight}
        elif dims.category == 0:
            logger.warning("sim: the log has no category, so hard search finds the whole history")

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the long and of the short interest, [B, interest_dim]."""
        assert inputs.recent is not None, missing("recent")
        norm = self.config.embedding_norm
        target = target_features(inputs, category_dim=self.category_dim, norm=norm)
        click_logits = {}
        if self.gsu is None:
            assert inputs.gated is not None, missing("gated")
            found = only_recent(inputs.gated, self.config.num_kept)
            features = item_features(found, norm=norm)
            long = self.esu(target, features, found, find_all)
        else:
            features = item_features(inputs.recent, norm=norm)
            search = self.gsu.search(target, features)
            long = self.esu(target, features, inputs.recent, search)
            if self.training:
                logits = self.gsu.click_logits(target, features, inputs.recent)
                click_logits["search_loss"] = logits
        short = self.short(inputs, only_recent(inputs.recent, self.config.short_length))
        interest = [self.vector(long, inputs.item), self.vector(short, inputs.item)]
        return InterestOutput(interest=torch.cat(interest, dim=1), click_logits=click_logits)


class SoftSearchUnit(nn.Module):
    """Relevance r_j = (W_b e_j) . (W_a v) (paper eq. 2), trained by a click model of its own.

    Choosing the highest r_j has no gradient: without that click model W_a and W_b would never
    learn.
    """

    def __init__(self, config: SimConfig, *, dim: int) -> None:
        super().__init__()
        self.num_kept = config.num_kept
        self.w_a = nn.Linear(dim, config.search_dim, bias=False)
        self.w_b = nn.Linear(dim, config.search_dim, bias=False)
        self.click_model = nn.Sequential(
            nn.Linear(2 * dim, config.search_hidden_dim),
            nn.ReLU(),
            nn.Linear(config.search_hidden_dim, 1),
        )

    def search(self, target: Tensor, features: Tensor) -> Search:
        """Finds the behaviours [L, F] of highest relevance to the targets [B, F]."""
        query, keys = search_vectors(target, self.w_a), search_vectors(features, self.w_b)
        return search_by_product(query, keys, k=self.num_kept)

    def click_logits(self, target: Tensor, features: Tensor, sequence: BehaviourSequence) -> Tensor:
        """Logits of the auxiliary click model on [U; v], U = sum_j r_j e_j, [B].

        U is linear attention: sum_j e_j (W_b e_j)^T is one matrix per request, times W_a v of each
        candidate. Ours: it is divided by the length of the history, so that U has the same scale
        for 10 and for 10,000 behaviours.
        """
        index = sequence.index
        widths = [self.w_b.out_features, features.shape[1]]

        def attend(block: CandidateBlock, candidates: Tensor, rows: Tensor) -> Tensor:
            keys, values = rows.split(widths, dim=2)
            return candidates @ (keys.mT @ values)

        pairs = torch.cat([self.w_b(features), features], dim=1)
        user = sequence.per_candidate(
            attend, sequence.candidates(self.w_a(target)), sequence.behaviours(pairs)
        )
        lengths = index.lengths.index_select(0, index.sequence)
        user = user / lengths.clamp(min=1).unsqueeze(1)
        return self.click_model(torch.cat([user, target], dim=1)).squeeze(1)
