"""SASRec: parity with the authors' code, causality, the last state, the next-item loss."""

import json
import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.config.sequential import SasrecConfig
from cdp_torchrec.interest.recent_sequence import last_state, next_behaviours, recency
from cdp_torchrec.interest.sasrec import SasrecInterest
from cdp_torchrec.interest.sequence import BehaviourSequence
from tests.golden_wave import wave
from tests.interest.sequences import items_only, take_sequences
from tests.paths import GOLDEN

GOLDEN_VECTORS = json.loads((GOLDEN / "sasrec.json").read_text())


def sequence_of(item_ids: list[list[int]], item: Tensor) -> BehaviourSequence:
    """Sequences of these items, one impression for each."""
    return items_only(item, [len(codes) for codes in item_ids], item_id=[*chain(*item_ids)])


def make_sasrec(dims: InterestDims, **settings: object) -> SasrecInterest:
    return SasrecInterest(SasrecConfig.model_validate({"kind": "sasrec"} | settings), dims)


@torch.no_grad()
def test_states_equal_the_official_code():
    """Fails with normalised keys or values, or with a residual around the layer norm.

    The authors' keys have a bias as well, which cancels in the softmax: here they have none.
    """
    dims = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)
    module = make_sasrec(dims, max_length=6, num_heads=2).eval()
    state = {"position": wave(6, 8, phase=11.0)}
    for block in range(2):
        # The authors' dense layers by order of creation: Q, K, V, then the feed-forward network.
        weights = [wave(8, 8, phase=1.0 + 5 * block + n) for n in range(5)]
        biases = [wave(8, phase=1.5 + 5 * block + n) for n in range(5)]
        state[f"blocks.{block}.key_value.weight"] = torch.cat(weights[1:3])
        state[f"blocks.{block}.value_bias"] = biases[2]
        for name, n in {"query": 0, "feed_forward.0": 3, "feed_forward.2": 4}.items():
            state[f"blocks.{block}.{name}.weight"] = weights[n]
            state[f"blocks.{block}.{name}.bias"] = biases[n]
    norms = ["blocks.0.attention", "blocks.0.feed_forward", "blocks.1.attention"]
    for n, name in enumerate([*norms, "blocks.1.feed_forward", ""]):
        norm = f"{name}_norm" if name else "norm"
        state[f"{norm}.bias"] = wave(8, phase=20.0 + 2 * n)
        state[f"{norm}.weight"] = 1 + wave(8, phase=21.0 + 2 * n)
    module.load_state_dict(state)
    sequences = [[3, 7, 2], [5, 1, 9, 4, 4, 8]]
    table = wave(10, 8, phase=10.0)
    states = module.encode(sequence_of(sequences, table[[code for s in sequences for code in s]]))
    torch.testing.assert_close(states, torch.tensor(GOLDEN_VECTORS["states"]), rtol=0, atol=5e-6)


def test_a_behaviour_does_not_see_later_ones(make_inputs, dims):
    module = make_sasrec(dims)
    recent = make_inputs(requires_grad=True).recent
    states = module.encode(recent)
    # The third behaviour of the history of 8. A plain sum of a layer norm is constant.
    (states[5] * torch.randn(dims.item)).sum().backward()
    gradient = recent.item.grad
    assert gradient[3:6].abs().sum(dim=1).gt(0).all()
    assert not gradient[6:].any() and not gradient[:3].any()


def test_the_interest_is_the_state_after_the_last_behaviour_and_zeros_without_one(
    make_inputs, dims
):
    module = make_sasrec(dims).eval()
    inputs = make_inputs()
    interest = module(inputs).interest
    states = module.encode(inputs.recent)
    lengths = inputs.recent.index.lengths[inputs.recent.index.sequence]
    assert not interest[lengths == 0].any()
    assert torch.equal(interest[1], states[2])  # histories of 0, 3, 8 and 21
    assert torch.equal(interest[3], states[31])


def test_a_state_does_not_depend_on_the_other_sequences(make_inputs, dims):
    module = make_sasrec(dims).eval()
    inputs = make_inputs()
    recent = inputs.recent
    own = recent.index.owner == 1
    alone = take_sequences(recent, torch.tensor([1]))
    states = module.encode(alone)
    torch.testing.assert_close(states, module.encode(recent)[own], rtol=1e-5, atol=1e-6)


def test_only_the_most_recent_behaviours_count(make_inputs, dims):
    module = make_sasrec(dims, max_length=5).eval()
    inputs = make_inputs()
    item = inputs.recent.item.clone()
    item[11:27] += 1.0  # all but the last five of the history of 21
    changed = replace(inputs, recent=replace(inputs.recent, item=item))
    assert torch.equal(module(changed).interest, module(inputs).interest)


def test_histories_that_are_all_empty_give_finite_gradients(dims):
    module = make_sasrec(replace(dims, category=0, action=0), next_item_loss_weight=0.1)
    recent = sequence_of([[], [], []], torch.zeros(0, dims.item))
    states = module.encode(recent)
    following = next_behaviours(recent.index, key=torch.arange(3), length=50)
    assert torch.equal(following.mean(states.sum(dim=1), recent.index), torch.zeros(3))
    last_state(states, recent.index).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_the_next_item_loss_exists_in_training_only_and_is_off_by_default(make_inputs, dims):
    module = make_sasrec(dims, next_item_loss_weight=0.1)
    assert set(module(make_inputs()).losses) == set(module.loss_weights) == {"next_item_loss"}
    assert not module.eval()(make_inputs()).losses
    assert not make_sasrec(dims)(make_inputs()).losses


def test_the_next_item_loss_is_the_mean_over_the_history_of_each_impression(make_inputs, dims):
    """Closed form: states of zero score everything 0, so that each pair costs 2 log 2."""
    module = make_sasrec(dims, next_item_loss_weight=1.0)
    with torch.no_grad():
        module.norm.weight.zero_()
    inputs = make_inputs()
    loss = module(inputs).losses["next_item_loss"]
    has_next = inputs.recent.index.lengths[inputs.recent.index.sequence] > 1
    torch.testing.assert_close(loss, 2 * math.log(2) * has_next)


def test_recency_counts_from_the_last_behaviour():
    recent = sequence_of([[4, 5, 6], [], [7, 8]], torch.zeros(5, 1))
    assert recency(recent.index).tolist() == [2, 1, 0, 1, 0]


def test_negatives_are_other_items_of_other_users_and_follow_from_the_keys():
    sequences = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    index = sequence_of(sequences, torch.zeros(9, 1)).index
    seen = set()
    for key in range(200):
        keys = torch.full((3,), key)
        following = next_behaviours(index, key=keys, length=50)
        again = next_behaviours(index, key=keys, length=50)
        assert torch.equal(following.negative, again.negative)
        assert (index.owner[following.negative] != index.owner).all()
        seen |= {(j, int(n)) for j, n in enumerate(following.negative)}
    assert len(seen) == 4 * 5 + 2 * 7 + 3 * 6  # every behaviour of the others comes up
    assert following.weight.tolist() == [1, 1, 1, 0, 1, 0, 1, 1, 0]
    assert following.positive[following.weight > 0].tolist() == [1, 2, 3, 5, 7, 8]


def test_the_only_history_of_a_batch_is_told_from_nobody():
    """Fails where its own oldest behaviour is the negative."""
    index = sequence_of([[], [1, 2, 3, 4], []], torch.zeros(4, 1)).index
    following = next_behaviours(index, key=torch.arange(3), length=50)
    assert following.weight.tolist() == [0, 0, 0, 0]


def test_heads_must_divide_the_embedding_dim(dims):
    with pytest.raises(ConfigError, match=r"num_heads = 3: must divide model\.embedding_dim = 8"):
        make_sasrec(dims, num_heads=3)
