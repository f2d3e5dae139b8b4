"""MTGR: HSTU whose candidates keep all their features, several requests of a user in one row.

Han et al., arXiv 2505.18654. A row's tokens are the user's profile, behaviours from before the
row's requests (static), those between its requests (real-time), and its candidates. A candidate's
token is made of everything that the log says of the impression, cross features included, where a
generative recommender has the item alone. Tokens of each kind have a layer norm of their own, and
a mask keeps what a request could not know from it.
"""

# B impressions, S sequences, L behaviours, R rows of all blocks, D embedding dim

import torch
from torch import Tensor, nn

from cdp_torchrec.data.history.sequence_index import SequenceIndex
from cdp_torchrec.interest.base import (
    InterestDims,
    InterestInput,
    InterestModule,
    InterestOutput,
    missing,
)
from cdp_torchrec.interest.config.long_sequence import MtgrConfig
from cdp_torchrec.interest.mtgr_layer import MtgrLayer, MtgrTimes, MtgrTokens
from cdp_torchrec.interest.output import InterestVector, layer_norm
from cdp_torchrec.interest.recent_sequence import keep_recent
from cdp_torchrec.interest.sequence import BehaviourSequence

_SECONDS_PER_HOUR = 3600.0
_TABLE_STD = 0.02


class MtgrInterest(InterestModule):
    """The interest is the encoded candidate.

    User features are a token of the row, read from any of its impressions; without them in the log
    it is a learned one. Query, context and scene can differ between the requests of a row, so they
    join the candidate's token, beside item and attributes. A log without some of these is read as
    far as it goes; without history a candidate attends to the user and to itself.

    Our batches have one request in a row. Its real-time behaviours are those of the last
    `realtime_hours`. A row of several requests goes through `encode_rows`.
    """

    def __init__(self, config: MtgrConfig, dims: InterestDims) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.realtime_s = config.realtime_hours * _SECONDS_PER_HOUR
        dim = dims.item
        self.user = nn.Linear(dims.user, dim) if dims.user else None
        if self.user is None:
            self.anybody = nn.Parameter(torch.empty(dim).normal_(std=_TABLE_STD))
        self.behaviour = nn.Linear(dim + dims.category + dims.action, dim)
        cross = dims.query + dims.context + dims.scene
        self.candidate = nn.Sequential(
            nn.Linear(dim + dims.item_attributes + cross, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.layers = nn.ModuleList(
            MtgrLayer(config, dim=dim, encodes_history=depth + 1 < config.num_layers)
            for depth in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.vector = InterestVector(config, dim=dim)
        self.interest_dim = self.vector.width

    def forward(self, inputs: InterestInput) -> InterestOutput:
        """Emitted parts of the candidates, [B, interest_dim], with one request in each row."""
        assert inputs.recent is not None, missing("recent")
        age, lengths = inputs.recent.index.age, inputs.recent.index.lengths
        return self._encode(
            inputs,
            request_age=age.new_zeros(inputs.item.shape[0]),
            realtime_s=age.new_full(lengths.shape, self.realtime_s),
        )

    def encode_rows(
        self, inputs: InterestInput, *, request_age: Tensor, realtime_s: Tensor
    ) -> InterestOutput:
        """The same, with several requests of a user in a row ("user-level compression").

        A row is a sequence of `inputs.recent`: the behaviours before its last request, with ages at
        that request. Each candidate sees what a row of its own request alone would hold, as long as
        `max_length` cuts nothing off. The data side makes no such rows.

        Args:
            inputs: candidates, each with the features of its own request.
            request_age: how long before the row's last request the candidate's own was, float [B].
            realtime_s: behaviours as old or older are static, float [S].

        Raises:
            ValueError: a request happened before its row's real-time behaviours begin: static ones,
                which everything sees, could be later than it.
        """
        assert inputs.recent is not None, missing("recent")
        if (request_age >= realtime_s.index_select(0, inputs.recent.index.sequence)).any():
            raise ValueError(
                f"request_age up to {request_age.max():g} s: must be below realtime_s, "
                f"{realtime_s.min():g} s in some row; a static behaviour is visible to all requests"
            )
        return self._encode(inputs, request_age=request_age, realtime_s=realtime_s)

    def _encode(
        self, inputs: InterestInput, *, request_age: Tensor, realtime_s: Tensor
    ) -> InterestOutput:
        assert inputs.recent is not None, missing("recent")
        recent = keep_recent(inputs.recent, self.max_length)
        index = recent.index
        times = MtgrTimes(
            is_static=index.age >= realtime_s.index_select(0, index.owner),
            request_age=request_age,
        )
        tokens = self._tokens(inputs, recent)
        for layer in self.layers:
            tokens = layer(tokens, recent, times)
        return InterestOutput(interest=self.vector(self.norm(tokens.candidate), inputs.item))

    def _tokens(self, inputs: InterestInput, recent: BehaviourSequence) -> MtgrTokens:
        """The tokens that enter the first layer."""
        behaviour = torch.cat([recent.item, recent.category, recent.action], dim=1)
        cross = [inputs.query, inputs.context, inputs.scene]
        candidate = torch.cat([inputs.item, inputs.item_attributes, *cross], dim=1)
        return MtgrTokens(
            user=self._users(inputs, recent.index),
            history=layer_norm(self.behaviour(behaviour)),
            candidate=layer_norm(self.candidate(candidate)),
        )

    def _users(self, inputs: InterestInput, index: SequenceIndex) -> Tensor:
        """The user's token in each row of all blocks, [R, D]."""
        blocks = (*index.sequence_blocks, *index.candidate_blocks)
        rows = torch.cat([block.sequence for block in blocks])
        if self.user is None:
            return self.anybody.expand(rows.shape[0], -1)
        first = index.first_impression.index_select(0, rows)
        return layer_norm(self.user(inputs.user.index_select(0, first)))
