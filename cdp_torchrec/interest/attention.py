"""Search and attention of candidates over behaviours, shared by SIM, TWIN, QIN, DIN and pooling.

What depends on a behaviour alone (its features, its key, its value) is a jagged tensor, made once
per request; what is here relates it to candidates, block by block.
"""

# B impressions, L behaviours, W rows of a block, C candidates in a row, N behaviours in a row,
# K behaviours kept, H heads, A width of queries, keys and values, D width of an item,
# F width of item and category

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.history.sequence_index import CandidateBlock
from cdp_torchrec.interest.age import AgeEmbedding
from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.base import AttentionConfig, EmbeddingNorm
from cdp_torchrec.interest.eager import always
from cdp_torchrec.interest.output import layer_norm
from cdp_torchrec.interest.sequence import BehaviourSequence, excluded, gather_each, present

# Up to this many times K, attending to all behaviours under a mask is cheaper than gathering the
# K kept ones of each candidate.
_DENSE_UP_TO = 4


def target_features(inputs: InterestInput, *, category_dim: int, norm: EmbeddingNorm) -> Tensor:
    """The target item beside its category, [B, D + D_category]."""
    category = inputs.item_attributes[:, :category_dim]
    return torch.cat([scaled(inputs.item, norm), scaled(category, norm)], dim=1)


def item_features(sequence: BehaviourSequence, *, norm: EmbeddingNorm) -> Tensor:
    """Item and category of each behaviour, as in target_features, [L, D + D_category]."""
    return torch.cat([scaled(sequence.item, norm), scaled(sequence.category, norm)], dim=1)


def scaled(x: Tensor, norm: EmbeddingNorm) -> Tensor:
    """Embeddings [X, D] as they are or in layer norm; D may be 0."""
    return x if norm == "none" or x.shape[1] == 0 else layer_norm(x)


def top_k(scores: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places of the k highest scores where `mask` holds, and which of them exist.

    Places that `mask` excludes rank below every score, however low, and are marked as missing where
    fewer than k are left. Equal scores (the same item twice) go to the last, most recent place.
    There is no gradient.

    Args:
        scores: float [..., N] with N >= k. Products of matrices belong in float64: in float32 the
            same item twice has two scores, since rounding depends on the place in a block, and the
            choice would depend on padding and processor. They are compared in float32.
        mask: bool, broadcasts to [..., N].
        k: how many to keep.

    Returns:
        Places int64 [..., k] in no order, and bool [..., k]: False where there is none.
    """
    bits = scores.detach().float().contiguous().view(torch.int32)
    # Integers in the order of the floats, then the place below them: no two keys are equal.
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    place = torch.arange(scores.shape[-1], device=scores.device)
    key = ((order << 32) + place).masked_fill(~mask, torch.iinfo(torch.int64).min)
    key, places = key.topk(k, dim=-1, sorted=False)
    return places, key > torch.iinfo(torch.int64).min


def search_vectors(x: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x) in float64 for scores of a search, without gradient and bias, [X, D] -> [X, D']."""
    return functional.linear(x.detach().double(), layer.weight.detach().double())


def top_k_mask(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """Where the k highest scores are, bool [..., N]; arguments as in top_k."""
    places, kept = top_k(scores, mask, k)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, kept)


@dataclass(frozen=True)
class Retrieved:
    """Behaviours that candidates attend to: rows of candidates that share gathered behaviours.

    The rows are those of the block, or a row for each candidate, in the same order.
    """

    behaviour: Tensor
    """Places in [0, L), L where there is none, int64 [W', N']."""
    mask: Tensor
    """Which of them each candidate keeps, bool [W', 1 or C', N']."""

    def as_rows(self, candidates: Tensor) -> Tensor:
        """Candidates of the block, [W, C, A], as the candidates of these rows, [W', C', A]."""
        return candidates.view(self.behaviour.shape[0], -1, candidates.shape[2])


Search = Callable[[BehaviourSequence], list[Retrieved]]
"""Finds behaviours for the candidates of each block."""


def find_all(sequence: BehaviourSequence) -> list[Retrieved]:
    """The search that keeps everything."""
    return [everything(block, sequence.item.shape[0]) for block in sequence.index.candidate_blocks]


def everything(block: CandidateBlock, num_behaviours: int) -> Retrieved:
    """All behaviours of a block, given L."""
    return Retrieved(block.behaviour, present(block, num_behaviours).unsqueeze(1))


def retrieve(scores: Tensor, behaviour: Tensor, *, num_behaviours: int, k: int) -> Retrieved:
    """The k behaviours with the highest scores for each candidate; all, if there are no more.

    Args:
        scores: [W, C, N].
        behaviour: places in [0, L), L where there is none, int64 [W, N].
        num_behaviours: L.
        k: how many to keep.
    """
    present = (behaviour < num_behaviours).unsqueeze(1)
    length = behaviour.shape[1]
    if always(length <= k):
        return Retrieved(behaviour, present)
    if always(length <= _DENSE_UP_TO * k):
        return Retrieved(behaviour, top_k_mask(scores, present, k))
    places, kept = top_k(scores, present, k)
    rows = behaviour.unsqueeze(1).expand_as(scores).gather(-1, places)
    return Retrieved(rows.flatten(0, 1), kept.flatten(0, 1).unsqueeze(1))


def search_by_product(query: Tensor, keys: Tensor, *, k: int) -> Search:
    """The search for the k behaviours [L, X] with the highest product with a candidate [B, X]."""

    def find(sequence: BehaviourSequence) -> list[Retrieved]:
        return [
            retrieve(
                of_candidates @ of_behaviours.mT,
                block.behaviour,
                num_behaviours=keys.shape[0],
                k=k,
            )
            for block, of_candidates, of_behaviours in zip(
                sequence.index.candidate_blocks,
                sequence.candidates(query),
                sequence.behaviours(keys),
                strict=True,
            )
        ]

    return find


class TargetAttention(nn.Module):
    """Multi-head attention of the target item over behaviours, with the time since each."""

    def __init__(
        self,
        config: AttentionConfig,
        dims: InterestDims,
        *,
        norm: EmbeddingNorm,
        num_queries: int = 1,
    ) -> None:
        """Args: settings, widths, norm of the embeddings, and queries of each target."""
        super().__init__()
        self.num_queries = num_queries
        self.norm: EmbeddingNorm = norm
        self.num_heads = config.num_heads
        dim = dims.item + dims.category
        self.age = AgeEmbedding(dim=config.age_dim)
        self.query = nn.Linear(dim, config.attention_dim, bias=False)
        self.key_value = nn.Linear(
            dim + dims.action + config.age_dim, 2 * config.attention_dim, bias=False
        )
        self.output = nn.Linear(num_queries * config.attention_dim, dims.item, bias=False)

    def forward(
        self, target: Tensor, features: Tensor, sequence: BehaviourSequence, search: Search
    ) -> Tensor:
        """Interest in the target, zeros where nothing is found, [B, D].

        Args:
            target: as from target_features, [B, F], or num_queries of these side by side, [B, Q F].
            features: as from item_features, [L, F].
            sequence: the behaviours.
            search: which of them to attend to.
        """
        query = self.query(target.unflatten(1, (self.num_queries, -1))).flatten(1)
        action = scaled(sequence.action, self.norm)
        behaviours = torch.cat([features, action, self.age(sequence.index.age)], dim=1)
        # Projected once per request, not once per candidate.
        key_value = self.key_value(behaviours)

        found = search(sequence)

        def attend_to_found(
            block: CandidateBlock, candidates: Tensor, found: Retrieved, rows: Tensor
        ) -> Tensor:
            keys, values = rows.chunk(2, dim=2)
            attended = [
                attend(queries, keys, values, found.mask, num_heads=self.num_heads)
                for queries in found.as_rows(candidates).chunk(self.num_queries, dim=2)
            ]
            return torch.cat(attended, dim=2).view_as(candidates)

        rows = gather_each(key_value, [of_block.behaviour for of_block in found])
        candidates = sequence.candidates(query)
        return self.output(sequence.per_candidate(attend_to_found, candidates, found, rows))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    num_heads: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Multi-head scaled dot-product attention, [W, C, A]; zeros where nothing is kept.

    Args:
        query: [W, C, A].
        keys: [W, N, A].
        values: [W, N, A].
        mask: bool, broadcasts to [W, C, N], or with the heads to [W, H, C, N].
        num_heads: H.
        bias: added to the scores, [W, N, H], or apart for each candidate [W, H, C, N].
    """
    if mask.dim() == 3:
        mask = mask.unsqueeze(1)
    found = mask.any(dim=3, keepdim=True)
    if bias is None:
        q, k, v = (_heads(x, num_heads) for x in (query, keys, values))
        # Kernels differ in what attention to nothing is, so there is always something.
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~found)
    else:
        added = excluded(mask, query.dtype) + _of_heads(bias)
        attended = _attend_with_bias(query, keys, values, added, num_heads=num_heads)
    return (attended * found).transpose(1, 2).flatten(2)


def attend_to_past(
    query: Tensor, keys: Tensor, values: Tensor, kept: Tensor, *, num_heads: int
) -> Tensor:
    """Attention of each place to itself and to those on its left, [W, N, A].

    A place that is not kept is not seen; what it sees itself is finite, and of no meaning. A
    dimension of the keys says so, 0 where they are kept, and all queries have a 1 there: without a
    mask the kernels of PyTorch leave out what lies on the right, and keep no scores in memory.

    Args:
        query: [W, N, A].
        keys: [W, N, A].
        values: [W, N, A].
        kept: bool [W, N].
        num_heads: H.
    """
    q, k, v = (_heads(x, num_heads) for x in (query, keys, values))
    left_out = excluded(kept, keys.dtype)[:, None, :, None].expand(-1, num_heads, -1, -1)
    attended = functional.scaled_dot_product_attention(
        functional.pad(q, (0, 1), value=1.0),
        torch.cat([k, left_out], dim=3),
        functional.pad(v, (0, 1)),
        is_causal=True,
        scale=q.shape[3] ** -0.5,
    )
    return attended[..., :-1].transpose(1, 2).flatten(2)


def _attend_with_bias(
    query: Tensor, keys: Tensor, values: Tensor, added: Tensor, *, num_heads: int
) -> Tensor:
    """Attention with something added to the scores, [W, H, C, A / H]; arguments as in attend.

    The fused kernels of PyTorch have no gradient for what is added.
    """
    # Head by head: views of keys and values, for which batched products need no copies.
    attended = [
        torch.baddbmm(start, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5).softmax(dim=2) @ v
        for start, q, k, v in zip(
            added.expand(-1, num_heads, -1, -1).unbind(1),
            *(x.chunk(num_heads, dim=2) for x in (query, keys, values)),
            strict=True,
        )
    ]
    return torch.stack(attended, dim=1)


def head_scores(query: Tensor, keys: Tensor, *, num_heads: int, bias: Tensor | None) -> Tensor:
    """Scores of each head before the softmax, [W, H, C, N]; arguments as in attend."""
    scale = (query.shape[2] // num_heads) ** -0.5
    scores = _heads(query * scale, num_heads) @ _heads(keys, num_heads).transpose(2, 3)
    if bias is None:
        return scores
    return scores + _of_heads(bias)


def _of_heads(bias: Tensor) -> Tensor:
    """A bias as in attend, [W, H, 1 or C, N]."""
    return bias if bias.dim() == 4 else bias.transpose(1, 2).unsqueeze(2)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[W, X, A] -> [W, H, X, A / H]."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def check_heads(key: str, heads: int, what: str, width: int) -> None:
    """Refuse a number of heads that does not divide the width of an attention.

    Args:
        key: of the number, in model.interest.
        heads: the number.
        what: the width's name.
        width: the width.

    Raises:
        ConfigError: it does not.
    """
    if width % heads:
        raise ConfigError.of([f"model.interest.{key} = {heads}: must divide {what} = {width}"])
