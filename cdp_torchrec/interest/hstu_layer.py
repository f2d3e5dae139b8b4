"""One transduction unit of HSTU (Zhai et al., ICML 2024), in the form of either of its codes."""

# B impressions, L behaviours, R rows of all blocks, P prefix tokens, W rows of a block, N its
# length, C candidates in a row, H heads, A / V width of a head's keys / values, D embedding dim

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex
from cdp_torchrec.interest.config.sequential import HstuLayerConfig, Variant
from cdp_torchrec.interest.pieces import in_pieces
from cdp_torchrec.interest.pointwise_attention import PointwiseAttention, Projection
from cdp_torchrec.interest.recent_sequence import recency
from cdp_torchrec.interest.sequence import BehaviourSequence

_NORM_EPS = 1e-6
_TABLE_STD = 0.02
_TIME_BUCKETS = 128


@dataclass(frozen=True)
class HstuTokens:
    """All tokens of a batch."""

    prefix: Tensor
    """What comes before the history, for each row of sequence blocks, then of candidate blocks;
    [R, P, D]. It sees no behaviour, so a request may stand in several rows."""
    history: Tensor
    """Behaviours, [L, D]."""
    target: Tensor
    """Candidates, [B, D]."""


class HstuLayer(nn.Module):
    """Projection, pointwise attention, gated output (paper eqs. 1-3)."""

    def __init__(
        self, config: HstuLayerConfig, *, dim: int, num_tokens: int, encodes_history: bool
    ) -> None:
        """Build the layer.

        Args:
            config: sizes and variant.
            dim: width D of the tokens.
            num_tokens: N_max, tokens of the longest possible sequence with one candidate.
            encodes_history: the last layer has no need to: only its targets are read.
        """
        super().__init__()
        is_ranking = config.variant == "ranking"
        self.variant: Variant = config.variant
        self.encodes_history = encodes_history
        v, a = config.num_heads * config.linear_dim, config.num_heads * config.attention_dim
        self.widths = [v, v, a, a]
        self.input_norm = nn.LayerNorm(dim, eps=_NORM_EPS, elementwise_affine=is_ranking)
        self.uvqk = nn.Linear(dim, sum(self.widths), bias=is_ranking)
        self.output_norm = nn.LayerNorm(v, eps=_NORM_EPS, elementwise_affine=is_ranking)
        self.out = nn.Linear(3 * v if is_ranking else v, dim, bias=not is_ranking)
        for linear in (self.uvqk, self.out):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.attention = PointwiseAttention(
            num_heads=config.num_heads,
            scale=config.attention_dim**-0.5 if is_ranking else 1.0,
            num_tokens=num_tokens,
        )
        self.bias = None if is_ranking else _RelativeBias(config.max_length)

    def forward(self, tokens: HstuTokens, recent: BehaviourSequence) -> HstuTokens:
        """The tokens after the layer."""
        prefix, history, target = (
            self._project(x) for x in (tokens.prefix, tokens.history, tokens.target)
        )
        index = recent.index
        memory = prefix.memory().split(
            [block.sequence.shape[0] for block in (*index.sequence_blocks, *index.candidate_blocks)]
        )
        split = len(index.sequence_blocks)
        seen = self._attend_targets(target, history, memory[split:], recent)
        target_tokens = self._output(tokens.target, target, seen)
        if not self.encodes_history:
            return replace(tokens, target=target_tokens)
        seen = self._attend_history(history, memory[:split], recent)
        return HstuTokens(
            prefix=self._output(tokens.prefix, prefix, self._attend_prefix(prefix)),
            history=self._output(tokens.history, history, seen),
            target=target_tokens,
        )

    def _project(self, x: Tensor) -> Projection:
        """U, V, Q, K of tokens [..., D] (eq. 1)."""
        projected = self.uvqk(self.input_norm(x))
        if self.variant == "research":
            projected = functional.silu(projected)
        u, v, q, k = projected.split(self.widths, dim=-1)
        return Projection(u=u if self.variant == "research" else functional.silu(u), q=q, k=k, v=v)

    def _output(self, x: Tensor, projection: Projection, attended: Tensor) -> Tensor:
        """Gated and projected attention, added to tokens x [..., D] (eq. 3)."""
        gated = projection.u * self.output_norm(attended)
        if self.variant == "ranking":
            gated = torch.cat([projection.u, attended, gated], dim=-1)
        return x + self.out(gated)

    def _attend_prefix(self, prefix: Projection) -> Tensor:
        """Each prefix token to those before it and to itself, [R, P, H * V]."""
        return self.attention(prefix.q, prefix.memory(), mask=_causal(prefix.q, prefix.q))

    def _attend_history(
        self, history: Projection, prefix: tuple[Tensor, ...], recent: BehaviourSequence
    ) -> Tensor:
        """Each behaviour to the prefix, to older behaviours and to itself, [L, H * V]."""
        age = recent.index.age.unsqueeze(1)
        tokens = [history.q, history.memory(), age]

        def attend(
            q: Tensor, memory: Tensor, age: Tensor, before: Tensor, start: int, stop: int
        ) -> Tensor:
            """Behaviours in columns [start, stop) to what they see."""
            seen = memory[:, :stop]
            bias = None
            if self.bias is not None:
                age = age.squeeze(2).detach()  # gathered with what has a gradient
                next_age = functional.pad(age[:, 1:], (0, 1))
                bias = self.bias.of_history(age[:, :stop], next_age[:, start:stop]).unsqueeze(1)
            older = self.attention(q, seen, bias=bias, mask=_causal(q, seen))
            return older + self.attention(q, before)

        def encode(_: SequenceBlock, found: Tensor, before: Tensor) -> Tensor:
            parts = found.split([token.shape[1] for token in tokens], dim=2)
            return in_pieces(attend, *parts, before)

        return recent.per_behaviour(encode, torch.cat(tokens, dim=1), prefix)

    def _attend_targets(
        self,
        target: Projection,
        history: Projection,
        prefix: tuple[Tensor, ...],
        recent: BehaviourSequence,
    ) -> Tensor:
        """Each candidate to the prefix, to the whole history and to itself, [B, H * V]."""
        memories = recent.behaviours(history.memory())
        biases: Sequence[Tensor | None] = [None] * len(memories)
        if self.bias is not None:
            biases = recent.behaviours(self.bias.of_target(recent.index))

        def attend(
            block: CandidateBlock, before: Tensor, q: Tensor, memory: Tensor, bias: Tensor | None
        ) -> Tensor:
            if bias is not None:
                bias = bias.transpose(1, 2).unsqueeze(1)
            return self.attention(q, memory, bias=bias) + self.attention(q, before)

        own_bias = None if self.bias is None else self.bias.of_itself()
        queries = recent.candidates(target.q)
        attended = recent.per_candidate(attend, prefix, queries, memories, biases)
        return attended + self.attention.to_itself(target, bias=own_bias)


class _RelativeBias(nn.Module):
    """rab^(p,t) (paper eq. 2): scalars by distance in places and in time, shared by the heads.

    The time of a query is that of the token after it, since it predicts what comes next; the last
    behaviour and the target stand at the time of the request. Prefix tokens have neither place nor
    time, so no bias.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(max_length + 1).normal_(std=_TABLE_STD))
        self.time = nn.Parameter(torch.empty(_TIME_BUCKETS + 1).normal_(std=_TABLE_STD))

    def of_history(self, age: Tensor, next_age: Tensor) -> Tensor:
        """Bias of the last X behaviours (rows) towards behaviours (columns), [W, X, N].

        Args:
            age: of the behaviours, [W, N].
            next_age: of what follows each of the last X, [W, X].
        """
        column = torch.arange(age.shape[1], device=age.device)
        distance = (column[-next_age.shape[1] :].unsqueeze(1) - column).clamp(min=0)
        elapsed = age.unsqueeze(1) - next_age.unsqueeze(2)
        time = self.time.index_select(0, _time_bucket(elapsed).flatten()).view_as(elapsed)
        return self.position[distance] + time

    def of_target(self, index: SequenceIndex) -> Tensor:
        """Bias of the target towards each behaviour, [L, 1]."""
        distance = (1 + recency(index)).clamp(max=len(self.position) - 1)
        time = self.time.index_select(0, _time_bucket(index.age))
        return (self.position.index_select(0, distance) + time).unsqueeze(1)

    def of_itself(self) -> Tensor:
        """Bias of the target towards itself, a scalar."""
        return self.position[0] + self.time[0]


def _causal(q: Tensor, memory: Tensor) -> Tensor:
    """1 where the last X of Y tokens may look: at themselves and to the left, [X, Y]."""
    num_queries, num_keys = q.shape[1], memory.shape[1]
    ones = torch.ones(num_queries, num_keys, dtype=q.dtype, device=q.device)
    return ones.tril(num_keys - num_queries)


def _time_bucket(seconds: Tensor) -> Tensor:
    return (seconds.abs().clamp(min=1).log() / 0.301).long().clamp(max=_TIME_BUCKETS)
