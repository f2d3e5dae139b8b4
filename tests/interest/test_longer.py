"""LONGER against a plain transformer: groups, masks, and a history that is encoded once."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest.base import InterestDims, InterestInput
from cdp_torchrec.interest.config.long_sequence import LongerConfig
from cdp_torchrec.interest.longer import LongerInterest
from cdp_torchrec.interest.merged_sequence import merge_index
from cdp_torchrec.interest.output import layer_norm
from cdp_torchrec.interest.sequence import gather
from cdp_torchrec.interest.transformer_layer import TransformerLayer
from tests.gradients import in_float64
from tests.interest.sequences import items_only, padded

MAX_LENGTH = 40


def make_longer(dims: InterestDims, **settings: object) -> LongerInterest:
    settings = {"kind": "longer", "max_length": MAX_LENGTH, "num_heads": 2} | settings
    return LongerInterest(LongerConfig.model_validate(settings), dims)


def plain_layer(layer: TransformerLayer, x: Tensor, mask: Tensor) -> Tensor:
    """A transformer layer on all tokens [X, A] of one sequence; `mask` says who sees whom."""
    normed = layer.attention_norm(x)
    projected = [layer.query(normed), *layer.key_value(normed).chunk(2, dim=1)]
    q, k, v = (part.view(len(x), layer.num_heads, -1).transpose(0, 1) for part in projected)
    seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + layer.out(seen.transpose(0, 1).flatten(1))
    return x + layer.feed_forward(x)


def plain_transformer(module: LongerInterest, inputs: InterestInput, impression: int) -> Tensor:
    """The interest of one impression: every token in one sequence, under the paper's mask."""
    recent = inputs.recent
    assert recent is not None and module.request is not None and module.cls is not None
    own = recent.index.owner == recent.index.sequence[impression]
    behaviours = module.behaviours(recent)[own][-module.max_length :]
    merged = []  # from the newest group to the oldest
    size = module.group_size
    while len(behaviours):
        group, behaviours = behaviours[-size:], behaviours[:-size]
        if module.inner is not None:
            group = plain_layer(module.inner, group, torch.ones(len(group), len(group)).bool())
        merged.append(functional.pad(group, (0, 0, size - len(group), 0)).flatten())
    parts = [inputs.item, inputs.item_attributes, inputs.context]
    candidate = torch.cat([part[impression] for part in parts])
    roles = torch.cat([r[impression] for r in (inputs.user, inputs.query, inputs.scene)])
    tokens = [layer_norm(module.candidate(candidate)), layer_norm(module.request(roles))]
    num_global = 2 + len(module.cls)
    x = torch.stack([*tokens, *module.cls, *merged])
    for depth, layer in enumerate(module.layers):
        assert isinstance(layer, TransformerLayer)
        # A token sees itself and those after it.
        y = plain_layer(layer, x, torch.ones(len(x), len(x), dtype=torch.bool).triu())
        x = y[: num_global + module.num_queries] if depth == 0 else y
    return module.output(module.norm(x[0]))


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 1, "num_queries": MAX_LENGTH, "num_layers": 3},
        {"group_size": 3, "num_queries": 2, "num_layers": 3, "num_cls_tokens": 2},
        {"group_size": 4, "num_queries": 1, "max_length": 10},
    ],
    ids=["nothing merged", "merged", "more behaviours than are read"],
)
def test_the_interest_is_that_of_a_plain_transformer(make_inputs, dims, settings):
    """With groups of one and all queries it is a transformer over behaviours. Fails when candidates
    see each other, when padding is attended to, and when a group starts at the oldest end."""
    module = make_longer(dims, **settings).double()
    inputs = in_float64(make_inputs(lengths=[0, 1, 7, 21]))
    interest = module(inputs).interest
    expected = torch.stack([plain_transformer(module, inputs, b) for b in range(12)])
    torch.testing.assert_close(interest, expected, rtol=0, atol=1e-12)


def test_an_older_behaviour_leaves_recent_groups_unchanged():
    """Fails when groups are counted from the oldest behaviour: each of them would change."""
    dims = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)
    module = make_longer(dims, group_size=4).double()
    item = torch.randn(10, 8, dtype=torch.float64)
    merged = []
    for length in (9, 10):
        recent = items_only(item[10 - length :], [length])
        index = merge_index(recent.index, group_size=4)
        tokens = module.merge(recent, index)
        merged.append(gather(tokens, index.sequence_groups[0])[0])
    before, after = (tokens[-3:] for tokens in merged)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-12, atol=1e-12)
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_every_group_has_a_place_of_its_own():
    lengths = [0, 1, 4, 5, 0, 8, 3, 17, 2]
    recent = items_only(torch.zeros(sum(lengths), 1), lengths)
    for group_size in (1, 2, 4, 5):
        index = merge_index(recent.index, group_size=group_size)
        places = torch.cat([places.flatten() for places in index.sequence_groups])
        places = places[places < index.size]
        assert len(places.unique()) == len(places)
        assert len(places) == sum(-(-length // group_size) for length in lengths)


@torch.no_grad()
def test_keys_and_values_of_the_history_are_those_of_any_other_candidates(make_inputs, dims):
    """What is remembered of a request serves candidates that were not there."""
    module = make_longer(dims, group_size=3, num_queries=2).eval()
    inputs, others = make_inputs(), make_inputs(seed=7)
    others = replace(others, recent=inputs.recent)
    memory, again = module.remember(inputs.recent), module.remember(others.recent)
    assert all(torch.equal(a, b) for a, b in zip(memory.layers, again.layers, strict=True))
    interest = module.attend(others, others.recent, memory)
    assert torch.equal(module.vector(interest, others.item), module(others).interest)
    assert not torch.equal(module(others).interest, module(inputs).interest)


def test_candidates_do_not_see_each_other(make_inputs, dims):
    module = make_longer(dims).eval()
    inputs = make_inputs()
    item = inputs.item.clone()
    item[3] += 1.0  # a neighbour of impressions 7 and 11, which share its history of 21
    before, after = module(inputs).interest, module(replace(inputs, item=item)).interest
    assert not torch.equal(after[3], before[3])
    others = torch.arange(12) != 3
    assert torch.equal(after[others], before[others])


def test_padding_that_is_no_multiple_of_a_group_changes_nothing(make_inputs, dims):
    module = make_longer(dims, group_size=4).eval()
    inputs = make_inputs()
    longer = replace(inputs, recent=padded(inputs.recent, 5))
    torch.testing.assert_close(
        module(longer).interest, module(inputs).interest, rtol=1e-5, atol=1e-6
    )


def test_time_matters_and_not_only_order(make_inputs, dims):
    module = make_longer(dims).eval()
    inputs = make_inputs()
    index = inputs.recent.index
    later = replace(inputs.recent, index=replace(index, age=index.age * 100))
    moved = module(replace(inputs, recent=later)).interest
    changed = (moved != module(inputs).interest).any(dim=1)
    assert torch.equal(changed, index.lengths[index.sequence] > 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, r"num_heads = 3: must divide group_size \* .*embedding_dim = 32"),
        ({"inner_heads": 3}, r"inner_heads = 3: must divide model\.embedding_dim = 8"),
    ],
)
def test_heads_must_divide_the_widths(dims, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_longer(dims, **settings)
