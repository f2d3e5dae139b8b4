"""What SIM, TWIN, QIN and DIN share: search, attention, and the contract that they keep."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.sequence_index import CandidateBlock, SequenceBlock
from cdp_torchrec.interest import attention
from cdp_torchrec.interest.attention import attend, retrieve, top_k
from cdp_torchrec.interest.base import InterestInput, InterestModule, InterestOutput
from cdp_torchrec.interest.config.attention import (
    ActivationUnitConfig,
    DinConfig,
    QinConfig,
    SimConfig,
    TwinConfig,
)
from cdp_torchrec.interest.din import DinInterest
from cdp_torchrec.interest.qin import QinInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from cdp_torchrec.interest.sim import SimInterest
from cdp_torchrec.interest.twin import TwinInterest

OURS: dict[str, Any] = {
    "emit": ("interest", "interest_item"),
    "num_kept": 5,
    "embedding_norm": "layernorm",
}
UNIT = ActivationUnitConfig(score_features=("action", "age"), normalise="softmax")
MODULES = {
    "din": lambda dims: DinInterest(DinConfig(kind="din", attention=UNIT), dims),
    "din_paper": lambda dims: DinInterest(DinConfig(kind="din"), dims),
    "sim_hard": lambda dims: SimInterest(SimConfig(kind="sim", **OURS), dims),
    "sim_soft": lambda dims: SimInterest(
        SimConfig(kind="sim", search="soft", short=UNIT, **OURS), dims
    ),
    "twin": lambda dims: TwinInterest(TwinConfig(kind="twin", **OURS), dims),
    "twin_each_head": lambda dims: TwinInterest(
        TwinConfig(kind="twin", kept_by="each_head", **OURS), dims
    ),
    "qin": lambda dims: QinInterest(QinConfig(kind="qin", num_query_kept=9, **OURS), dims),
}
LACKING = [(), ("category",), ("action",), ("query",), ("category", "action", "query")]


def auxiliary(output: InterestOutput) -> list[Tensor]:
    return [*output.losses.values(), *output.click_logits.values()]


def total(output: InterestOutput) -> Tensor:
    # A random projection: the sum of a layer norm is constant.
    projected = (output.interest * torch.randn_like(output.interest)).sum()
    return projected + sum(loss.sum() for loss in auxiliary(output))


def select(inputs: InterestInput, kept: list[int]) -> InterestInput:
    """A batch of these impressions alone, on the same behaviours in blocks of twice the length."""

    def narrowed(sequence: BehaviourSequence) -> BehaviourSequence:
        index = sequence.index
        blocks = []
        for impression in kept:
            for block in index.candidate_blocks:
                rows = (block.impression == impression).any(dim=1).nonzero().flatten()
                if len(rows):
                    longer = functional.pad(
                        block.behaviour[rows], (block.behaviour.shape[1], 0), value=len(index.owner)
                    )
                    place = torch.tensor([[kept.index(impression)]])
                    blocks.append(CandidateBlock(block.sequence[rows], longer, place))
        padding = len(index.owner)
        sequence_blocks = tuple(
            SequenceBlock(block.sequence, functional.pad(block.behaviour, (8, 0), value=padding))
            for block in index.sequence_blocks
        )
        return replace(
            sequence,
            index=replace(
                index,
                sequence=index.sequence[kept],
                sequence_blocks=sequence_blocks,
                candidate_blocks=tuple(blocks),
                place=torch.arange(len(kept)),
            ),
        )

    assert inputs.gated is not None and inputs.recent is not None
    recent = narrowed(inputs.recent)
    first = torch.zeros_like(recent.index.first_impression)
    for place, sequence in enumerate(recent.index.sequence.tolist()):
        first[sequence] = place
    recent = replace(recent, index=replace(recent.index, first_impression=first))
    fields = ("user", "query", "item", "item_attributes", "context", "scene", "key")
    return replace(
        inputs,
        **{name: getattr(inputs, name)[kept] for name in (*fields, "item_id", "category_id")},
        gated=narrowed(inputs.gated),
        recent=recent,
    )


def test_padding_does_not_outrank_behaviours_with_negative_scores():
    """Scores times mask, as in a public re-implementation of SIM, keeps the padding at 0."""
    scores = torch.tensor([[-3.0, -1.0, 9.0, 0.0, -2.0]])
    mask = torch.tensor([[True, True, False, False, True]])
    places, kept = top_k(scores, mask, 2)
    assert sorted(places[0].tolist()) == [1, 4]
    assert kept.all()
    places, kept = top_k(scores, mask, 4)
    assert sorted(places[0][kept[0]].tolist()) == [0, 1, 4]


def test_equal_scores_go_to_the_most_recent_behaviour():
    scores = torch.tensor([[1.0, 1.0, 0.0, 1.0, -0.5, -0.5]])
    for k, expected in ((2, [1, 3]), (5, [0, 1, 2, 3, 5])):
        places, _ = top_k(scores, torch.tensor(True), k)
        assert sorted(places[0].tolist()) == expected


def test_top_k_agrees_with_sorting():
    scores = torch.randn(50, 33) * torch.logspace(-20, 20, 33)
    places, kept = top_k(scores, torch.ones(50, 33, dtype=torch.bool), 7)
    expected = scores.sort(dim=1, descending=True).values[:, :7]
    assert kept.all()
    assert torch.equal(scores.gather(1, places).sort(dim=1, descending=True).values, expected)


def test_a_mask_and_gathered_rows_retrieve_the_same(monkeypatch):
    behaviour = torch.arange(3 * 16).view(3, 16)
    behaviour[:, :5] = behaviour[2, :] = 48
    scores, query = torch.randn(3, 4, 16), torch.randn(3, 4, 8)
    keys, values = torch.randn(2, 49, 8).unbind()
    results = []
    for dense_up_to in (4, 1):
        monkeypatch.setattr(attention, "_DENSE_UP_TO", dense_up_to)
        found = retrieve(scores, behaviour, num_behaviours=48, k=4)
        assert (len(found.behaviour) == 3) == (dense_up_to == 4)
        attended = attend(
            found.as_rows(query),
            keys[found.behaviour],
            values[found.behaviour],
            found.mask,
            num_heads=2,
        )
        results.append(attended.view(3, 4, 8))
    torch.testing.assert_close(results[0], results[1])
    assert not results[0][2].any()


def test_attention_is_scaled_dot_product_attention():
    query, keys, values = torch.randn(3, 4, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mask, bias = torch.rand(3, 4, 5) < 0.7, torch.randn(3, 5, 2)
    mask[:, :, 0] = True
    q, k, v = (x.unflatten(2, (2, 4)).transpose(1, 2) for x in (query, keys, values))
    added = bias.permute(0, 2, 1).unsqueeze(2).masked_fill(~mask.unsqueeze(1), -torch.inf)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
    attended = attend(query, keys, values, mask, num_heads=2, bias=bias)
    torch.testing.assert_close(attended, expected.transpose(1, 2).flatten(2))


@pytest.fixture(params=[(name, lacking) for name in MODULES for lacking in LACKING], ids=str)
def module_and_dims(request, dims):
    name, lacking = request.param
    dims = replace(dims, **{role: 0 for role in lacking})
    return MODULES[name](dims), dims


def test_output_is_as_declared_and_gradients_reach_every_parameter(module_and_dims, make_inputs):
    module, dims = module_and_dims
    inputs = make_inputs(dims, lengths=[0, 3, 12, 40], requires_grad=True)
    output = module(inputs)
    assert output.interest.shape == (12, module.interest_dim)
    assert all(loss.shape == (12,) for loss in auxiliary(output))
    assert len(auxiliary(output)) == len(module.loss_weights)
    total(output).backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert auxiliary(module.eval()(inputs)) == []


def test_empty_histories_give_zeros_and_finite_gradients(module_and_dims, make_inputs):
    module, dims = module_and_dims
    output = module(make_inputs(dims, lengths=[0, 0, 0, 0], requires_grad=True))
    assert not output.interest.any()
    total(output).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_scores_depend_on_the_impression_alone(module_and_dims, make_inputs):
    module, dims = module_and_dims
    inputs = make_inputs(dims, lengths=[0, 3, 12, 40])
    if dims.query:
        # All candidates of a request have its query.
        per_request = inputs.query[inputs.recent.index.first_impression]
        inputs = replace(inputs, query=per_request[inputs.recent.index.sequence])
    interest = module.eval()(inputs).interest
    kept = [7, 2, 0, 3]
    torch.testing.assert_close(module(select(inputs, kept)).interest, interest[kept])


@pytest.mark.parametrize("name", MODULES)
def test_modules_compile_as_one_graph(name, dims, make_inputs):
    module: InterestModule = MODULES[name](dims).eval()
    inputs = make_inputs(dims, lengths=[0, 3, 12, 40])

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, item: Tensor) -> Tensor:
            return self.module(replace(inputs, item=item)).interest

    expected = module(inputs).interest
    compiled = torch.compile(Scores(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs.item), expected)
