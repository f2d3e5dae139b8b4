"""Condition: experts and gate of eqs. 5-8, with every ablation."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.interest import InterestDims
from cdp_torchrec.interest.condition import CollaborativeExpert, Condition, build_condition
from cdp_torchrec.interest.config.gated import ConditionConfig, Interaction
from cdp_torchrec.interest.context_gain import build_gain
from tests.gradients import idle, idle_parameters, in_float64


def test_gate_weights_are_positive_and_sum_to_one(make_inputs, dims):
    fused = Condition(ConditionConfig(), dims, dim=8)(make_inputs())
    assert fused.gate_weights.shape == (12, 3)
    assert (fused.gate_weights >= 0).all()
    torch.testing.assert_close(fused.gate_weights.sum(dim=1), torch.ones(12))


def test_the_condition_is_the_gated_sum_of_the_experts(make_inputs, dims):
    condition, inputs = Condition(ConditionConfig(), dims, dim=8), make_inputs()
    outputs = [
        condition.networks["collaborative"](inputs),
        condition.networks["context"](inputs.context),
        condition.networks["scene"](inputs.scene),
    ]
    assert condition.gate is not None
    weights = torch.softmax(torch.cat(outputs, dim=1) @ condition.gate.weight.T, dim=1)
    expected = sum(weights[:, [k]] * output for k, output in enumerate(outputs))
    torch.testing.assert_close(condition(inputs).condition, expected)


def test_a_gate_without_one_expert_is_normalised_over_those_left(make_inputs, dims):
    condition = Condition(ConditionConfig(experts=("context", "scene")), dims, dim=8)
    inputs = make_inputs()
    fused = condition(inputs)
    torch.testing.assert_close(fused.gate_weights.sum(dim=1), torch.ones(12))
    for role in ("user", "query", "item", "item_attributes"):
        other = replace(inputs, **{role: torch.randn_like(getattr(inputs, role))})
        assert torch.equal(condition(other).condition, fused.condition)


def test_the_collaborative_expert_alone_ignores_context_and_scene(make_inputs, dims):
    condition = Condition(ConditionConfig(experts=("collaborative",)), dims, dim=8)
    inputs = make_inputs()
    other = replace(
        inputs, context=torch.randn_like(inputs.context), scene=torch.randn_like(inputs.scene)
    )
    assert torch.equal(condition(other).condition, condition(inputs).condition)
    expected = condition.networks["collaborative"](inputs)
    torch.testing.assert_close(condition(inputs).condition, expected)


@pytest.mark.parametrize(("fusion", "factor"), [("mean", 1 / 3), ("sum", 1.0)])
def test_mean_and_sum_have_no_gate(make_inputs, dims, fusion, factor):
    condition = Condition(ConditionConfig(fusion=fusion), dims, dim=8)
    inputs = make_inputs()
    fused = condition(inputs)
    expected = factor * (
        condition.networks["collaborative"](inputs)
        + condition.networks["context"](inputs.context)
        + condition.networks["scene"](inputs.scene)
    )
    torch.testing.assert_close(fused.condition, expected)
    assert fused.gate_weights is None
    assert condition.monitors(fused) == {}


def test_without_experts_there_is_no_condition(dims):
    assert build_condition(ConditionConfig(experts=()), dims, dim=8) is None


def test_hadamard_terms_are_the_three_products_of_eq_5(make_inputs, dims):
    expert, inputs = (
        CollaborativeExpert(ConditionConfig(interaction="hadamard"), dims, dim=8),
        make_inputs(),
    )
    q = expert.projections["query"](inputs.query)
    u = expert.projections["user"](inputs.user)
    i = expert.projections["item"](torch.cat([inputs.item, inputs.item_attributes], dim=1))
    expected = expert.mlp(torch.cat([q, u, i, q * u, q * i, u * i], dim=1))
    torch.testing.assert_close(expert(inputs), expected)


def test_bilinear_terms_with_identity_matrices_are_the_hadamard_terms(make_inputs, dims):
    bilinear = CollaborativeExpert(ConditionConfig(interaction="bilinear"), dims, dim=8)
    hadamard = CollaborativeExpert(ConditionConfig(interaction="hadamard"), dims, dim=8)
    hadamard.load_state_dict(bilinear.state_dict(), strict=False)
    with torch.no_grad():
        for weight in bilinear.bilinear.parameters():
            weight.copy_(torch.eye(8))
    inputs = make_inputs()
    torch.testing.assert_close(bilinear(inputs), hadamard(inputs))


@pytest.mark.parametrize("interaction", get_args(Interaction))
@pytest.mark.parametrize("fusion", ["moe", "concat_mlp"])
@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_every_option_trains_all_its_parameters(make_inputs, dims, interaction, fusion, gate):
    config = ConditionConfig(interaction=interaction, fusion=fusion, gate=gate)
    condition = Condition(config, dims, dim=8).double()
    fused = condition(in_float64(make_inputs()))
    assert idle_parameters(condition, fused.condition.square().sum()) == []


def test_a_stopped_item_is_read_but_not_trained(make_inputs, dims):
    inputs = in_float64(make_inputs(requires_grad=True))
    flowing = Condition(ConditionConfig(), dims, dim=8).double()
    stopped = Condition(ConditionConfig(item_gradient="stop"), dims, dim=8).double()
    stopped.load_state_dict(flowing.state_dict())
    assert torch.equal(stopped(inputs).condition, flowing(inputs).condition)
    roles = (inputs.item, inputs.item_attributes, inputs.user)
    gradients = torch.autograd.grad(stopped(inputs).condition.sum(), roles, allow_unused=True)
    names = ("item", "attributes", "user")
    assert idle(dict(zip(names, gradients, strict=True))) == ["item"]
    assert gradients[0] is None


@pytest.mark.parametrize("missing", ["user", "query", "context", "scene", "item_attributes"])
@pytest.mark.parametrize("interaction", get_args(Interaction))
def test_a_role_that_the_dataset_lacks_is_left_out(make_inputs, dims, missing, interaction):
    dims = replace(dims, **{missing: 0})
    condition = Condition(ConditionConfig(interaction=interaction), dims, dim=8)
    fused = condition(make_inputs(dims))
    assert fused.condition.shape == (12, 8)
    assert fused.condition.isfinite().all()
    assert fused.gate_weights.shape[1] == (2 if missing in ("context", "scene") else 3)
    assert all(p.numel() > 0 for p in condition.parameters())


def test_what_the_settings_name_and_the_log_lacks_is_logged(dims, caplog):
    build_condition(ConditionConfig(), dims, dim=8)
    assert not caplog.messages
    build_condition(ConditionConfig(), replace(dims, scene=0, query=0), dim=8)
    assert caplog.messages == [
        "condition: the log has no scene, so its expert is left out",
        "condition: the log has no query, so eq. 5 is without its terms",
    ]
    caplog.clear()
    build_condition(ConditionConfig(experts=("context",)), replace(dims, scene=0, query=0), dim=8)
    assert not caplog.messages


def test_a_gain_that_nothing_feeds_is_logged(dims, caplog):
    bare = replace(dims, query=0, context=0, scene=0)
    assert build_gain(ConditionConfig(gain_dim=4, experts=()), bare, dim=8) is None
    assert build_gain(ConditionConfig(), bare, dim=8) is None
    assert not caplog.messages
    assert build_gain(ConditionConfig(gain_dim=4), bare, dim=8) is None
    assert caplog.messages[0].startswith("gain: the log has nothing of query, context and scene")


def test_the_item_alone_still_makes_a_condition(make_inputs):
    dims = InterestDims(user=0, query=0, item=8, item_attributes=0, context=0, scene=0)
    condition = Condition(ConditionConfig(), dims, dim=8)
    assert condition.experts == ("collaborative",)
    assert condition(make_inputs(dims)).condition.shape == (12, 8)


def test_monitors_tell_the_mean_weight_of_each_expert_and_the_entropy(make_inputs, dims):
    condition = Condition(ConditionConfig(), dims, dim=8)
    assert condition.gate is not None
    torch.nn.init.zeros_(condition.gate.weight)
    monitors = condition.monitors(condition(make_inputs()))
    for expert in ("collaborative", "context", "scene"):
        assert monitors[f"gate_{expert}"].item() == pytest.approx(1 / 3)
    assert monitors["gate_entropy"].item() == pytest.approx(torch.tensor(3.0).log().item())


def test_an_expert_named_twice_is_refused():
    with pytest.raises(ValidationError, match="each expert can be named once only"):
        ConditionConfig(experts=("scene", "scene"))
