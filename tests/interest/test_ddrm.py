"""DDRM denoises both sides on clean conditions, or the mean history into an ideal item."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.interest.base import GatedPool, InterestInput
from cdp_torchrec.interest.config.generative import DdrmConfig
from cdp_torchrec.interest.ddrm import DdrmInterest
from cdp_torchrec.keyed_random import Stream, keyed_normal, keyed_timesteps
from tests.gradients import idle, in_float64

EMIT = ("interest", "interest_item")
READINGS = ["symmetric", "ideal_item"]


@pytest.fixture
def make_ddrm(dims):
    def make(lacking: str | None = None, **settings: Any) -> DdrmInterest:
        ours: dict[str, Any] = {"emit": EMIT, "latent_norm": "layernorm"}
        config = DdrmConfig(kind="ddrm", **ours | settings)
        return DdrmInterest(config, dims if lacking is None else replace(dims, **{lacking: 0}))

    return make


def clean_sides(module: DdrmInterest, inputs: InterestInput) -> tuple[Tensor, Tensor]:
    """User and item before the noise, in layer norm."""
    assert inputs.recent is not None
    index = inputs.recent.index
    means = []
    for sequence in index.sequence.tolist():
        own = inputs.recent.item[index.owner == sequence]
        mean = own.mean(dim=0) if len(own) else module.null_history
        means.append(functional.layer_norm(mean, mean.shape, eps=1e-8))
    user = module.fuse_user(torch.cat([inputs.user, torch.stack(means)], dim=1))
    return (
        functional.layer_norm(user, user.shape[1:], eps=1e-8),
        functional.layer_norm(inputs.item, inputs.item.shape[1:], eps=1e-8),
    )


@pytest.mark.parametrize("reading", READINGS)
def test_the_click_loss_trains_user_and_item(make_ddrm, make_inputs, reading):
    module = make_ddrm(reading=reading).double()
    inputs = in_float64(make_inputs(requires_grad=True))
    interest = module(inputs).interest
    user, item = torch.autograd.grad(
        (interest * torch.randn_like(interest)).sum(), [inputs.user, inputs.item]
    )
    assert idle({"user": user, "item": item}) == []


def test_the_history_is_all_of_it_or_that_in_the_category(make_ddrm):
    assert make_ddrm().config.history == HistoryLookup(recent=True)
    by_category = make_ddrm(history_filter="category").config.history
    assert by_category == HistoryLookup(pool_segments=())


def test_user_and_item_are_denoised_by_weights_of_their_own(make_ddrm, make_inputs):
    """Fails where one denoiser serves both sides."""
    module, inputs = make_ddrm().eval(), make_inputs()
    before = module(inputs).interest
    with torch.no_grad():
        for parameter in module.item_process.parameters():
            parameter.add_(0.1)
    after = module(inputs).interest
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, -8:], after[:, -8:])


def test_training_conditions_each_side_on_the_clean_other_one(make_ddrm, make_inputs):
    """Fails where the condition is the noised vector, or where the two timesteps differ."""
    module, inputs = make_ddrm(), make_inputs()
    user, item = clean_sides(module, inputs)
    timesteps = keyed_timesteps(inputs.key, 30, Stream.TRAINING_TIMESTEP)
    assert module.user_process is not None
    user_hat = module.user_process.one_step(
        user,
        noise=keyed_normal(inputs.key, 8, Stream.TRAINING_NOISE),
        timesteps=timesteps,
        condition=item,
    )
    # The item's noise is another stream: the user's would tell it what to remove.
    item_noise = keyed_normal(inputs.key, 8, Stream.ITEM_TRAINING_NOISE)
    item_hat = module.item_process.one_step(
        item, noise=item_noise, timesteps=timesteps, condition=user
    )
    output = module(inputs)
    torch.testing.assert_close(output.interest[:, :8], user_hat)
    torch.testing.assert_close(output.interest[:, -8:], item_hat)
    error = ((user_hat - user).square() + (item_hat - item).square()).mean(dim=1) / 2
    torch.testing.assert_close(output.losses["denoise_loss"], error)


def test_serving_runs_the_whole_chain_from_the_start_that_is_set(make_ddrm, make_inputs):
    inputs = make_inputs()
    for start in ("clean", "noised"):
        module = make_ddrm(start=start).eval()
        user, item = clean_sides(module, inputs)
        assert module.user_process is not None
        state = user
        if start == "noised":
            noise = keyed_normal(inputs.key, 8, Stream.START_NOISE)
            state = module.user_process.last_state(user, noise)
        assert len(module.user_process.steps) == 30
        expected = module.user_process.chain(state, item)
        torch.testing.assert_close(module(inputs).interest[:, :8], expected)


def test_ideal_item_is_scored_by_its_inner_product_and_cosine(make_ddrm, make_inputs):
    module, inputs = make_ddrm(reading="ideal_item", emit=("interest",)).eval(), make_inputs()
    _, item = clean_sides(module, inputs)
    interest, score, cosine = module(inputs).interest.split([8, 1, 1], dim=1)
    torch.testing.assert_close(score.squeeze(1), (interest * item).sum(dim=1))
    expected = functional.cosine_similarity(interest, item)
    torch.testing.assert_close(cosine.squeeze(1), expected)


def test_ideal_item_does_not_depend_on_the_target_item(make_ddrm, make_inputs):
    module, inputs = make_ddrm(reading="ideal_item").eval(), make_inputs()
    other = replace(inputs, item=inputs.item + 1.0 * torch.randn_like(inputs.item))
    assert torch.equal(module(inputs).interest[:, :8], module(other).interest[:, :8])


@pytest.mark.parametrize("reading", READINGS)
def test_on_the_chain_the_tower_receives_the_same_in_training_and_serving(
    make_ddrm, make_inputs, reading
):
    """Fails where the tower learns from the prediction at a random timestep."""
    module = make_ddrm(reading=reading, train_path="chain")
    inputs = make_inputs()
    training = module(inputs).interest
    torch.testing.assert_close(training, module.eval()(inputs).interest)


def test_the_denoising_loss_of_the_chain_leaves_the_embeddings_alone(make_ddrm, make_inputs):
    """Fails where the loss can be lowered by shrinking what it reconstructs."""
    module, inputs = make_ddrm(train_path="chain"), make_inputs(requires_grad=True)
    module(inputs).losses["denoise_loss"].sum().backward()
    assert inputs.item.grad is None
    assert inputs.user.grad is None
    assert module.fuse_user.weight.grad is None


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("history_filter", ["none", "category"])
def test_an_empty_history_is_the_null_vector_and_gradients_stay_finite(
    make_ddrm, make_inputs, reading, history_filter
):
    module = make_ddrm(reading=reading, history_filter=history_filter)
    inputs = make_inputs(num_segments=1)
    assert inputs.pool is not None
    empty = GatedPool(torch.zeros_like(inputs.pool.sums), torch.zeros_like(inputs.pool.lengths))
    inputs = replace(inputs, pool=empty)
    output = module(inputs)
    (output.interest.sum() + output.losses["denoise_loss"].sum()).backward()
    assert output.interest.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    if reading == "ideal_item" and history_filter == "category":
        assert not output.losses["denoise_loss"].any()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("train", [True, False])
def test_an_impression_has_its_result_in_any_batch(make_ddrm, make_inputs, reading, train):
    module = make_ddrm(reading=reading).train(train)
    inputs, others = make_inputs(), make_inputs(seed=5)
    keep = torch.arange(12) == 5
    mixed = {
        name: torch.where(keep.view(-1, 1), getattr(inputs, name), getattr(others, name))
        for name in ("user", "item")
    }
    mixed["key"] = torch.where(keep, inputs.key, others.key)
    result, alone = module(replace(inputs, **mixed)), module(inputs)
    torch.testing.assert_close(result.interest[5], alone.interest[5])
    for name, loss in alone.losses.items():
        torch.testing.assert_close(result.losses[name][5], loss[5])


def test_without_users_the_history_is_the_user_and_the_log_says_so(
    make_ddrm, make_inputs, dims, caplog
):
    with caplog.at_level(logging.WARNING):
        module = make_ddrm(lacking="user")
    assert "the dataset has no user" in caplog.text
    assert module(make_inputs(replace(dims, user=0))).interest.isfinite().all()


@pytest.mark.parametrize("lacking", ["query", "category", "action", "item_attributes"])
def test_what_ddrm_does_not_use_may_be_missing(make_ddrm, make_inputs, dims, lacking):
    module = make_ddrm(lacking=lacking)
    assert module(make_inputs(replace(dims, **{lacking: 0}))).interest.isfinite().all()
