"""HSTU: parity with the authors' two layers, its masks, and its independence of the batch."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.sequential import HstuConfig
from cdp_torchrec.interest.hstu import HstuInterest
from cdp_torchrec.interest.hstu_layer import HstuLayer, HstuTokens
from cdp_torchrec.interest.recent_sequence import keep_recent
from cdp_torchrec.interest.sequence import BehaviourSequence
from tests import golden_wave
from tests.interest.sequences import items_only, take
from tests.paths import GOLDEN

GOLDEN_VECTORS = json.loads((GOLDEN / "hstu.json").read_text())
VARIANTS = ["research", "ranking"]
DIM, HEADS, KEY, VALUE, MAX_LENGTH = 8, 2, 4, 3, 10
LENGTHS = [0, 3, 7, 10]
SEQUENCES = [0, 1, 2, 3, 3, 2, 1, 3]

wave = partial(golden_wave.wave, scale=0.3)


def golden_history() -> BehaviourSequence:
    """Histories of 0, 3, 7 and 10 behaviours that eight candidates share."""
    ages = [60.0 * 1.45**k for length in LENGTHS for k in range(length, 0, -1)]
    item = wave(sum(LENGTHS), DIM, phase=0.1, scale=1.0)
    recent = items_only(item, LENGTHS, sequence=SEQUENCES, age_s=ages)
    return keep_recent(recent, MAX_LENGTH)


def golden_config(variant: str) -> HstuConfig:
    sizes = {"max_length": MAX_LENGTH, "num_heads": HEADS}
    widths = {"attention_dim": KEY, "linear_dim": VALUE}
    return HstuConfig.model_validate({"kind": "hstu", "variant": variant} | sizes | widths)


def golden_layer(variant: str, depth: int, *, num_tokens: int) -> HstuLayer:
    layer = HstuLayer(
        golden_config(variant), dim=DIM, num_tokens=num_tokens, encodes_history=depth == 0
    )
    width = 2 * HEADS * (KEY + VALUE)
    weights = {"uvqk.weight": wave(width, DIM, phase=1.0 + depth)}
    if variant == "research":
        weights |= {
            "out.weight": wave(DIM, HEADS * VALUE, phase=2.0 + depth),
            "out.bias": wave(DIM, phase=3.0 + depth),
            "bias.position": wave(MAX_LENGTH + 1, phase=4.0 + depth),
            "bias.time": wave(129, phase=5.0 + depth),
        }
    else:
        weights |= {
            "uvqk.bias": wave(width, phase=6.0 + depth),
            "input_norm.weight": 1 + wave(DIM, phase=7.0 + depth),
            "input_norm.bias": wave(DIM, phase=8.0 + depth),
            "out.weight": wave(DIM, 3 * HEADS * VALUE, phase=2.0 + depth),
            "output_norm.weight": 1 + wave(HEADS * VALUE, phase=9.0 + depth),
            "output_norm.bias": wave(HEADS * VALUE, phase=10.0 + depth),
        }
    layer.load_state_dict(weights)
    return layer


def run(variant: str, tokens: HstuTokens, recent: BehaviourSequence, *, num_tokens: int) -> Tensor:
    for depth in range(2):
        tokens = golden_layer(variant, depth, num_tokens=num_tokens)(tokens, recent)
    return tokens.target


@torch.no_grad()
def test_research_layers_equal_the_official_code():
    recent = golden_history()
    target = wave(len(SEQUENCES), DIM, phase=0.2, scale=1.0)
    blocks = [*recent.index.sequence_blocks, *recent.index.candidate_blocks]
    rows = sum(len(block.sequence) for block in blocks)
    tokens = HstuTokens(prefix=torch.zeros(rows, 0, DIM), history=recent.item, target=target)
    result = run("research", tokens, recent, num_tokens=MAX_LENGTH + 1)
    torch.testing.assert_close(result, torch.tensor(GOLDEN_VECTORS["research"]), rtol=0, atol=2e-6)


@torch.no_grad()
def test_ranking_layers_and_their_position_and_time_embeddings_equal_the_official_code():
    recent = golden_history()
    # Two prefix roles; the contents of all tokens are taken out, to compare what is added.
    dims = InterestDims(user=1, query=1, item=DIM, item_attributes=0, context=0, scene=0)
    encoder = HstuInterest(golden_config("ranking"), dims).tokens
    assert encoder.position is not None and encoder.time is not None
    encoder.position.copy_(wave(2 + 1 + MAX_LENGTH, DIM, phase=11.0))
    encoder.time.copy_(wave(2049, DIM, phase=12.0))
    # The authors' prefix tokens all have the oldest time, which their PyTorch kernel takes to be
    # the bucket of the table's width minus one; ours have it inside their positions.
    encoder.position[:2] += encoder.time[DIM - 1]
    encoder.placeholder.zero_()
    for layer in (encoder.content, *encoder.prefix.values()):
        for parameter in layer.parameters():
            parameter.zero_()
    batch = len(SEQUENCES)
    inputs = blank_inputs(dims, recent, batch=batch)
    added = encoder(inputs, recent)
    expected = torch.tensor(GOLDEN_VECTORS["ranking_position_and_time"])
    torch.testing.assert_close(added.history, expected, rtol=0, atol=2e-6)
    blocks = [*recent.index.sequence_blocks, *recent.index.candidate_blocks]
    rows = torch.cat([block.sequence for block in blocks])
    scale = math.sqrt(DIM)  # the authors' encoder scales what it adds to; ours does not
    prefix = wave(4, 2, DIM, phase=0.3, scale=scale)
    tokens = HstuTokens(
        prefix=added.prefix + prefix[rows],
        history=added.history + scale * recent.item,
        target=added.target + wave(batch, DIM, phase=0.2, scale=scale),
    )
    result = run("ranking", tokens, recent, num_tokens=GOLDEN_VECTORS["num_tokens"])
    torch.testing.assert_close(result, torch.tensor(GOLDEN_VECTORS["ranking"]), rtol=0, atol=2e-6)


def blank_inputs(dims: InterestDims, recent: BehaviourSequence, *, batch: int) -> InterestInput:
    def zeros(width: int) -> Tensor:
        return torch.zeros(batch, width)

    return InterestInput(
        user=zeros(dims.user),
        query=zeros(dims.query),
        item=zeros(dims.item),
        item_attributes=zeros(dims.item_attributes),
        context=zeros(dims.context),
        scene=zeros(dims.scene),
        key=torch.zeros(batch, dtype=torch.int64),
        item_id=torch.zeros(batch, dtype=torch.int64),
        category_id=torch.zeros(batch, dtype=torch.int64),
        recent=recent,
    )


def make_hstu(dims: InterestDims, **settings: object) -> HstuInterest:
    settings = {"emit": ("interest", "interest_item"), "num_heads": 2} | settings
    return HstuInterest(HstuConfig.model_validate({"kind": "hstu"} | settings), dims)


@pytest.mark.parametrize("variant", VARIANTS)
def test_candidates_do_not_see_each_other(make_inputs, dims, variant):
    module = make_hstu(dims, variant=variant).eval()
    inputs = make_inputs()
    item = inputs.item.clone()
    item[3] += 1.0  # a neighbour of impressions 7 and 11, which share its history of 21
    before, after = module(inputs).interest, module(replace(inputs, item=item)).interest
    assert not torch.equal(after[3], before[3])
    others = torch.arange(12) != 3
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_score_does_not_depend_on_the_longest_history_of_the_batch(make_inputs, dims, variant):
    """Fails when scores are divided by a length of the batch instead of the constant N_max."""
    module = make_hstu(dims, variant=variant).eval()
    inputs = make_inputs()
    rows = torch.tensor([1, 5, 9])
    result = module(take(inputs, rows)).interest
    torch.testing.assert_close(result, module(inputs).interest[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_target_carries_a_placeholder_and_no_action(make_inputs, dims, variant):
    """Any dependence on an action of the target would be a leak of its label."""
    module = make_hstu(dims, variant=variant)
    inputs = make_inputs(requires_grad=True)
    recent = inputs.recent
    assert recent is not None
    module.tokens(inputs, recent).target.sum().backward()
    assert recent.action.grad is None
    gradient = module.tokens.placeholder.grad
    assert gradient is not None and gradient.eq(len(inputs.item)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_behaviour_does_not_see_later_ones(make_inputs, dims, variant):
    module = make_hstu(dims, variant=variant)  # its first layer encodes the history
    inputs = make_inputs()
    layer = module.layers[0]
    assert inputs.recent is not None
    recent = keep_recent(inputs.recent, module.max_length)
    tokens = module.tokens(inputs, recent)
    x = tokens.history.detach().requires_grad_()
    states = layer(replace(tokens, history=x), recent).history
    states[5].sum().backward()  # the third behaviour of the history of 8
    assert x.grad[3:6].abs().sum(dim=1).gt(0).all()
    assert not x.grad[6:].any() and not x.grad[:3].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_time_matters_and_not_only_order(make_inputs, dims, variant):
    module = make_hstu(dims, variant=variant).eval()
    inputs = make_inputs()
    recent = inputs.recent
    assert recent is not None
    index = recent.index
    later = replace(recent, index=replace(index, age=index.age * 100))
    moved = module(replace(inputs, recent=later)).interest
    changed = (moved != module(inputs).interest).any(dim=1)
    assert torch.equal(changed, index.lengths[index.sequence] > 0)
