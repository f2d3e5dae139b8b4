"""DIEN: parity with the authors' cell, padding, the meaning of an attention of 0."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cdp_torchrec.interest.base import InterestDims
from cdp_torchrec.interest.config.sequential import DienConfig
from cdp_torchrec.interest.dien import DienInterest
from cdp_torchrec.interest.recurrence import Recurrence
from tests.golden_wave import wave
from tests.interest.sequences import take
from tests.paths import GOLDEN

GOLDEN_VECTORS = json.loads((GOLDEN / "dien.json").read_text())
FORMS = ["paper", "official"]


def make_dien(dims: InterestDims, **settings: object) -> DienInterest:
    return DienInterest(DienConfig.model_validate({"kind": "dien"} | settings), dims)


@torch.no_grad()
def test_official_gru_and_augru_equal_the_official_code():
    """Fails with a reset gate after its matrix, or where a = 0 keeps the state."""
    width, hidden, lengths = 5, 4, [0, 2, 6]
    cell = Recurrence(width, hidden, augru="official")
    # The authors' kernels take [x, h].
    gates, candidate = wave(9, 2 * hidden, phase=1.0), wave(9, hidden, phase=3.0)
    bias = torch.cat([wave(2 * hidden, phase=2.0), wave(hidden, phase=4.0)])
    weight = torch.cat([gates[:width], candidate[:width]], dim=1).T
    state = {"input.weight": weight, "input.bias": bias}
    cell.load_state_dict(state | {"gates": gates[width:], "candidate": candidate[width:]})
    x, attention = wave(3, 6, width, phase=0.1, scale=1.0), wave(3, 6, phase=0.2, scale=1.0).abs()
    # The authors pad at the end, our blocks at the start.
    for row, length in enumerate(lengths):
        x[row], attention[row] = x[row].roll(6 - length, 0), attention[row].roll(6 - length, 0)
    mask = (torch.arange(6) >= 6 - torch.tensor(lengths).unsqueeze(1)).float()
    last = cell.last_state(cell.input(x), mask=mask, attention=attention.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(last, torch.tensor(GOLDEN_VECTORS["augru"]), rtol=0, atol=1e-6)
    last = cell.states(cell.input(x), mask=mask)[:, -1]
    torch.testing.assert_close(last, torch.tensor(GOLDEN_VECTORS["gru"]), rtol=0, atol=1e-6)


@torch.no_grad()
def test_without_attention_the_paper_form_is_the_gru_of_torch():
    """PyTorch's update gate keeps the old state, the paper's replaces it: one minus the other."""
    cell, gru = Recurrence(5, 4, augru="paper"), nn.GRU(5, 4, batch_first=True)
    sign = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(4)  # sigmoid(-x) = 1 - sigmoid(x)
    recurrent = torch.cat([cell.gates, cell.candidate], dim=1).T * sign.unsqueeze(1)
    weights = {"weight_ih_l0": cell.input.weight * sign.unsqueeze(1), "weight_hh_l0": recurrent}
    biases = {"bias_ih_l0": cell.input.bias * sign, "bias_hh_l0": torch.zeros(12)}
    gru.load_state_dict(weights | biases)
    x = torch.randn(3, 6, 5)
    states = cell.states(cell.input(x), mask=torch.ones(3, 6))
    torch.testing.assert_close(states, gru(x)[0], rtol=1e-5, atol=1e-6)


def test_the_shipped_augru_is_the_equations_of_the_paper(load_interest):
    """Eqs. 2-5 and 14-16, step by step in NumPy: the update gate times the attention."""
    shipped = load_interest("interest/dien").augru
    assert shipped == "paper"
    width, hidden, steps = 5, 4, 6
    cell = Recurrence(width, hidden, augru=shipped).double()
    weight, bias = cell.input.weight.detach().numpy(), cell.input.bias.detach().numpy()
    gates, candidate = cell.gates.detach().numpy(), cell.candidate.detach().numpy()
    x, attention = (
        wave(2, steps, width, phase=0.1, scale=1.0).double(),
        wave(2, 3, steps, phase=0.4).abs(),
    )
    attention = attention.double() / attention.sum(dim=2, keepdim=True)
    expected = np.zeros((2, 3, hidden))
    for row, target in itertools.product(range(2), range(3)):
        h = np.zeros(hidden)
        for i, a in zip(x[row].numpy(), attention[row, target].numpy(), strict=True):
            w_r, w_u, w_h = np.split(weight @ i + bias, 3)
            u_r, u_u = np.split(h @ gates, 2)
            r, u = 1 / (1 + np.exp(-w_r - u_r)), 1 / (1 + np.exp(-w_u - u_u))
            u = a * u  # eq. 15
            h = (1 - u) * h + u * np.tanh(w_h + r * (h @ candidate))  # eq. 16
        expected[row, target] = h
    found = cell.last_state(cell.input(x), mask=torch.ones(2, steps).double(), attention=attention)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_an_attention_of_zero_keeps_the_state_in_the_paper_and_is_a_gru_step_in_the_code():
    x, mask, attention = torch.randn(2, 3, 5), torch.ones(2, 3), torch.ones(2, 1, 3)
    attention[:, :, 1] = 0.0
    paper, official = Recurrence(5, 4, augru="paper"), Recurrence(5, 4, augru="official")
    inputs = paper.input(x)
    first, second, third = (
        paper.last_state(inputs[:, :n], mask=mask[:, :n], attention=attention[:, :, :n])
        for n in (1, 2, 3)
    )
    assert torch.equal(second, first) and not torch.equal(third, second)
    nothing = torch.zeros(2, 1, 3)
    ignored = official.last_state(official.input(x), mask=mask, attention=nothing)
    plain = official.states(official.input(x), mask=mask)
    torch.testing.assert_close(ignored, plain[:, -1:])


@pytest.mark.parametrize("augru", FORMS)
def test_states_of_a_history_do_not_depend_on_padding_or_on_others(make_inputs, dims, augru):
    """Fails where padding at the start of a block moves the state away from zero."""
    module = make_dien(dims, augru=augru).eval()
    inputs = make_inputs()
    alone = take(inputs, torch.tensor([9]))
    assert alone.recent is not None
    index = alone.recent.index
    # Without any padding: three columns instead of the eight of the shortest block.
    bare = torch.tensor([[0, 1, 2]])
    index = replace(
        index,
        sequence_blocks=(replace(index.sequence_blocks[0], behaviour=bare),),
        candidate_blocks=(replace(index.candidate_blocks[0], behaviour=bare),),
    )
    result = module(replace(alone, recent=replace(alone.recent, index=index))).interest
    torch.testing.assert_close(result, module(inputs).interest[9:10], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("augru", FORMS)
def test_without_history_the_interest_is_a_learned_vector(make_inputs, dims, augru):
    module = make_dien(dims, augru=augru).eval()
    inputs = make_inputs()
    empty = inputs.recent.index.lengths[inputs.recent.index.sequence] == 0
    interest = module(inputs).interest
    assert torch.equal(interest[empty], module.project.bias.expand(int(empty.sum()), -1))
    assert not torch.equal(interest[~empty][0], module.project.bias)


@pytest.mark.parametrize("augru", FORMS)
def test_the_interest_depends_on_the_target_and_on_the_order(make_inputs, dims, augru):
    module = make_dien(dims, augru=augru).eval()
    inputs = make_inputs()
    interest = module(inputs).interest
    assert not torch.equal(interest[3], interest[7])  # two candidates of one history
    item = inputs.recent.item.clone()
    item[11:] = item[11:].flip(0)
    reordered = module(replace(inputs, recent=replace(inputs.recent, item=item))).interest
    assert not torch.allclose(reordered[3], interest[3], rtol=1e-6)


def test_the_auxiliary_loss_exists_in_training_only(make_inputs, dims):
    module = make_dien(dims)
    assert set(module(make_inputs()).losses) == set(module.loss_weights) == {"auxiliary_loss"}
    assert not module.eval()(make_inputs()).losses
    assert not make_dien(dims, auxiliary_loss_weight=0.0)(make_inputs()).losses


def test_the_auxiliary_loss_is_a_mean_over_behaviours_and_not_over_padding(make_inputs, dims):
    """Closed form: a network of zeros costs 2 log 2 a pair. The authors' mean counts padding."""
    module = make_dien(dims)
    assert module.auxiliary is not None
    for parameter in module.auxiliary.parameters():
        nn.init.zeros_(parameter)
    inputs = make_inputs()
    has_next = inputs.recent.index.lengths[inputs.recent.index.sequence] > 1
    loss = module(inputs).losses["auxiliary_loss"]
    torch.testing.assert_close(loss, 2 * math.log(2) * has_next)
