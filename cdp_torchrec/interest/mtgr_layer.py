"""A layer of MTGR (arXiv 2505.18654): HSTU's unit with a norm for each kind of token, and its mask.

The user and static behaviours see the user and static behaviours. A real-time behaviour also sees
the real-time ones before it and itself; a candidate, those before its own request and itself.
"""

# B impressions, L behaviours, R rows of all blocks, W rows of a block, N its length, C candidates
# in a row, X queries, Y keys, H heads, A / V width of a head's keys / values, D embedding dim

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock
from cdp_torchrec.interest.age import log_forgetting
from cdp_torchrec.interest.config.long_sequence import MtgrConfig
from cdp_torchrec.interest.pieces import in_pieces
from cdp_torchrec.interest.pointwise_attention import PointwiseAttention, Projection
from cdp_torchrec.interest.sequence import BehaviourSequence, gather_each

_CANDIDATE, _STATIC, _REALTIME, _USER = range(4)
_NUM_KINDS = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class MtgrTokens:
    """All tokens of a batch."""

    user: Tensor
    """The user's profile, for each row of sequence blocks, then of candidate blocks; [R, D]."""
    history: Tensor
    """Behaviours, [L, D]."""
    candidate: Tensor
    """[B, D]"""


@dataclass(frozen=True)
class MtgrTimes:
    """What decides who sees whom."""

    is_static: Tensor
    """Which behaviours are from before all requests of their row, bool [L]."""
    request_age: Tensor
    """How long before the last request of its row a candidate's own request was, float [B]."""


class MtgrLayer(nn.Module):
    """Projection, pointwise attention, gated output, as in HSTU's eqs. 1-3."""

    def __init__(self, config: MtgrConfig, *, dim: int, encodes_history: bool) -> None:
        """Build the layer.

        Args:
            config: sizes.
            dim: width D of the tokens.
            encodes_history: the last layer has no need to: only its candidates are read.
        """
        super().__init__()
        self.encodes_history = encodes_history
        v, a = config.num_heads * config.linear_dim, config.num_heads * config.attention_dim
        self.widths = [v, a, v, a]
        self.input_norm = GroupLayerNorm(_NUM_KINDS, dim)
        self.uqvk = nn.Linear(dim, sum(self.widths))
        self.slopes = nn.Parameter(torch.zeros(config.num_heads))
        self.output_norm = GroupLayerNorm(_NUM_KINDS if encodes_history else 1, v)
        self.out = nn.Linear(v, dim)
        for linear in (self.uqvk, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.attention = PointwiseAttention(
            num_heads=config.num_heads,
            scale=config.attention_dim**-0.5,
            num_tokens=config.max_length + 2,
        )

    def forward(
        self, tokens: MtgrTokens, recent: BehaviourSequence, times: MtgrTimes
    ) -> MtgrTokens:
        """The tokens after the layer."""
        kinds = torch.where(times.is_static, _STATIC, _REALTIME)
        user = self._project(tokens.user, _USER)
        history = self._project(tokens.history, kinds)
        candidate = self._project(tokens.candidate, _CANDIDATE)
        index = recent.index
        blocks = (*index.sequence_blocks, *index.candidate_blocks)
        num_rows = [block.sequence.shape[0] for block in blocks]
        of_user = user.memory().unsqueeze(1).split(num_rows)
        split = len(index.sequence_blocks)
        # Memory, age and kind of a behaviour: one gather fetches them.
        seen_of = torch.stack([index.age, times.is_static.to(index.age.dtype)], dim=1)
        rows = torch.cat([history.memory(), seen_of], dim=1)
        of_candidates = recent.behaviours(rows)
        attended = self._attend_candidates(candidate, of_candidates, of_user[split:], recent, times)
        encoded = self._output(tokens.candidate, candidate, attended, _CANDIDATE)
        if not self.encodes_history:
            return replace(tokens, candidate=encoded)
        attended = self._attend_history(history, rows, of_user[:split], recent)
        of_sequences = gather_each(rows, [block.behaviour for block in index.sequence_blocks])
        seen = [*of_sequences, *of_candidates]
        of_users = [
            self._attend_user(q.unsqueeze(1), of_block, memory)
            for q, of_block, memory in zip(user.q.split(num_rows), seen, of_user, strict=True)
        ]
        return MtgrTokens(
            user=self._output(tokens.user, user, torch.cat(of_users).squeeze(1), _USER),
            history=self._output(tokens.history, history, attended, kinds),
            candidate=encoded,
        )

    def _project(self, x: Tensor, kind: Tensor | int) -> Projection:
        """U, Q, V, K of tokens [X, D] of a kind, or of kinds [X]."""
        u, q, v, k = self.uqvk(self.input_norm(x, kind)).split(self.widths, dim=-1)
        return Projection(u=functional.silu(u), q=q, k=k, v=v)

    def _output(
        self, x: Tensor, projection: Projection, attended: Tensor, kind: Tensor | int
    ) -> Tensor:
        """Gated and projected attention, added to tokens x [X, D]."""
        return x + self.out(projection.u * self.output_norm(attended, kind))

    def _attend_user(self, q: Tensor, rows: Tensor, of_user: Tensor) -> Tensor:
        """The user to itself and to static behaviours, [W, 1, H * V].

        Args:
            q: of the user, [W, 1, H * A].
            rows: memory, age and kind of the behaviours, [W, N, ...].
            of_user: memory of the user, [W, 1, H * (V + A)].
        """
        memory, _, is_static = _parts(rows)
        seen = self.attention(q, memory, mask=is_static[:, None, None])
        return seen + self.attention(q, of_user)

    def _attend_history(
        self,
        history: Projection,
        rows: Tensor,
        of_user: tuple[Tensor, ...],
        recent: BehaviourSequence,
    ) -> Tensor:
        """Each behaviour to the user, static ones and those not after it, [L, H * V]."""
        split = [history.q.shape[1], rows.shape[1]]

        def attend(q: Tensor, seen: Tensor, of_user: Tensor, start: int, stop: int) -> Tensor:
            """Behaviours in columns [start, stop) to those that they see."""
            memory, age, is_static = _parts(seen)
            column = torch.arange(age.shape[1], device=age.device)
            not_after = (column <= column[start:stop].unsqueeze(1)).to(age.dtype)
            mask = torch.maximum(is_static.unsqueeze(1), not_after)
            elapsed = (age.unsqueeze(1) - age[:, start:stop].unsqueeze(2)).abs()
            return self._attend(q, of_user, memory, mask=mask, elapsed=elapsed)

        def encode(_: SequenceBlock, found: Tensor, of_user: Tensor) -> Tensor:
            return in_pieces(attend, *found.split(split, dim=2), of_user)

        return recent.per_behaviour(encode, torch.cat([history.q, rows], dim=1), of_user)

    def _attend_candidates(
        self,
        candidate: Projection,
        rows: list[Tensor],
        of_user: tuple[Tensor, ...],
        recent: BehaviourSequence,
        times: MtgrTimes,
    ) -> Tensor:
        """Each candidate to the user, to what its own request could know, to itself, [B, H * V]."""
        together = torch.cat([candidate.q, times.request_age.unsqueeze(1)], dim=1)

        def attend(_: CandidateBlock, own: Tensor, seen: Tensor, of_user: Tensor) -> Tensor:
            memory, age, is_static = _parts(seen)
            elapsed = age.unsqueeze(1) - own[:, :, -1:].detach()  # until its own request
            mask = torch.maximum(is_static.unsqueeze(1), (elapsed > 0).to(age.dtype))
            q = own[:, :, :-1]
            return self._attend(q, of_user, memory, mask=mask, elapsed=elapsed)

        candidates = recent.candidates(together)
        attended = recent.per_candidate(attend, candidates, rows, of_user)
        return attended + self.attention.to_itself(candidate)

    def _attend(
        self, q: Tensor, of_user: Tensor, memory: Tensor, *, mask: Tensor, elapsed: Tensor
    ) -> Tensor:
        """Queries to the user and to behaviours, which are forgotten with time, [W, X, H * V].

        Args:
            q: queries, [W, X, H * A].
            of_user: memory of the user, [W, 1, H * (V + A)].
            memory: of the behaviours, [W, N, H * (V + A)].
            mask: 0 where a query must not look, [W, X, N].
            elapsed: seconds between a behaviour and a query, [W, X, N].
        """
        bias = log_forgetting(elapsed).unsqueeze(1) * self.slopes.view(-1, 1, 1)
        seen = self.attention(q, memory, bias=bias, mask=mask.unsqueeze(1))
        return seen + self.attention(q, of_user)


class GroupLayerNorm(nn.Module):
    """Layer norm with weights and biases of their own for each kind of token (GLN)."""

    def __init__(self, num_kinds: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_kinds, dim))
        self.bias = nn.Parameter(torch.zeros(num_kinds, dim))

    def forward(self, x: Tensor, kind: Tensor | int) -> Tensor:
        """Tokens [X, D] of one kind, or of kinds [X]."""
        normed = functional.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)
        if isinstance(kind, int):
            return normed * self.weight[kind] + self.bias[kind]
        return normed * self.weight.index_select(0, kind) + self.bias.index_select(0, kind)


def _parts(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory [W, N, ...], age [W, N] and whether it is static, as 1 or 0, [W, N].

    The last two are data, which have no gradient but for being gathered with what has one.
    """
    return rows[:, :, :-2], rows[:, :, -2].detach(), rows[:, :, -1].detach()
