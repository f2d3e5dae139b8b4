"""Pooled history: eq. 3, its empty case, and what is emitted."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from cdp_torchrec.config import ConfigError
from cdp_torchrec.interest import (
    CdpConfig,
    GatedPool,
    InterestDims,
    InterestInput,
    PooledConfig,
    load_interest,
)
from cdp_torchrec.interest.pooling import Emission, HistoryPooling, normalise

DIMS = InterestDims(user=0, query=0, item=3, item_attributes=0, context=0, scene=0)


def pooling(**settings) -> HistoryPooling:
    return HistoryPooling(PooledConfig(kind="pooled", **settings), DIMS)


def by_daypart(pool: GatedPool) -> HistoryPooling:
    """A pooling in one segment by recency, which tells parts of the day apart."""
    dims = replace(DIMS, dayparts=pool.lengths.shape[1])
    return HistoryPooling(PooledConfig(kind="pooled"), dims)


def gated_pool(segments: list[list[torch.Tensor]]) -> InterestInput:
    """One impression whose behaviours are given per segment."""
    sums = [torch.stack([torch.zeros(3), *behaviours]).sum(dim=0) for behaviours in segments]
    lengths = torch.tensor([[float(len(behaviours)) for behaviours in segments]])
    return pool(torch.stack(sums).unsqueeze(0), lengths)


def pool(sums: torch.Tensor, lengths: torch.Tensor) -> InterestInput:
    batch = len(sums)
    nothing, code = torch.zeros(batch, 0), torch.zeros(batch, dtype=torch.int64)
    return InterestInput(
        user=nothing,
        query=nothing,
        item=torch.ones(batch, 3),
        item_attributes=nothing,
        context=nothing,
        scene=nothing,
        key=code,
        item_id=code,
        category_id=code,
        pool=GatedPool(sums=sums, lengths=lengths),
    )


BEHAVIOURS = list(torch.arange(18, dtype=torch.float32).reshape(6, 3).square())


def test_z_0_is_the_mean_of_the_gated_behaviours():
    pooled = pooling()(gated_pool([BEHAVIOURS]))
    torch.testing.assert_close(pooled.latent[0], torch.stack(BEHAVIOURS).mean(dim=0))


def test_segments_with_equal_weights_make_the_same_mean():
    pooled = pooling(recency_segments=(1, 2))(
        gated_pool([BEHAVIOURS[:1], BEHAVIOURS[1:3], BEHAVIOURS[3:]])
    )
    torch.testing.assert_close(pooled.latent[0], torch.stack(BEHAVIOURS).mean(dim=0))


def test_z_0_does_not_depend_on_the_order_of_behaviours_inside_a_segment():
    reverse = pooling()(gated_pool([BEHAVIOURS[::-1]]))
    torch.testing.assert_close(reverse.latent, pooling()(gated_pool([BEHAVIOURS])).latent)


def test_a_heavier_segment_pulls_the_mean_towards_itself():
    module = pooling(recency_segments=(1,))
    assert module.mean is not None and module.mean.log_weights is not None
    with torch.no_grad():
        module.mean.log_weights.copy_(torch.tensor([3.0, 1.0]).log())
    pooled = module(gated_pool([BEHAVIOURS[:1], BEHAVIOURS[1:3]]))
    expected = (3 * BEHAVIOURS[0] + BEHAVIOURS[1] + BEHAVIOURS[2]) / 5
    torch.testing.assert_close(pooled.latent[0], expected)


def test_the_time_of_day_adds_a_map_of_each_part_to_the_mean():
    inputs = gated_pool([BEHAVIOURS])
    by_time = gated_pool([BEHAVIOURS[:1], [], BEHAVIOURS[1:]]).pool
    assert by_time is not None and inputs.pool is not None
    module = by_daypart(by_time)
    inputs = replace(inputs, daypart=by_time)
    mean = torch.stack(BEHAVIOURS).mean(dim=0)
    torch.testing.assert_close(module(inputs).latent[0], mean)  # eq. 3 at the start
    assert module.shift is not None
    weight, bias = torch.randn(3, 3, 3), torch.randn(3, 3)
    with torch.no_grad():
        module.shift.weight.copy_(weight)
        module.shift.bias.copy_(bias)
    mapped = [BEHAVIOURS[0] @ weight[0] + bias[0]]
    mapped += [behaviour @ weight[2] + bias[2] for behaviour in BEHAVIOURS[1:]]
    expected = mean + torch.stack(mapped).mean(dim=0)
    torch.testing.assert_close(module(inputs).latent[0], expected)
    # A part that is all of the behaviours is the same latent.
    latent, count = module.of_part(replace(inputs, part=by_time))
    torch.testing.assert_close(latent[0], expected)
    assert count.tolist() == [6.0]


def test_an_empty_history_has_no_time_of_day():
    empty = GatedPool(sums=torch.zeros(1, 4, 3, requires_grad=True), lengths=torch.zeros(1, 4))
    module = by_daypart(empty)
    pooled = module(replace(pool(torch.zeros(1, 1, 3), torch.zeros(1, 1)), daypart=empty))
    assert torch.equal(pooled.latent[0], module.null_latent)
    pooled.latent.square().sum().backward()
    assert module.shift is not None
    for parameter in (module.shift.weight, module.shift.bias, empty.sums):
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize("latent_norm", ["none", "layernorm", "l2"])
def test_an_empty_history_is_the_learned_null_vector_with_finite_gradients(latent_norm):
    module = pooling(recency_segments=(1,), latent_norm=latent_norm)
    sums = torch.zeros(1, 2, 3, requires_grad=True)
    pooled = module(pool(sums, torch.zeros(1, 2)))
    assert torch.equal(pooled.latent[0], module.null_latent)
    assert pooled.present.tolist() == [0.0]
    pooled.latent.square().sum().backward()
    assert module.null_latent.grad is not None
    assert torch.equal(module.null_latent.grad, 2 * module.null_latent.detach())
    assert sums.grad is not None
    assert not sums.grad.any()


@pytest.mark.parametrize("latent_norm", ["layernorm", "l2"])
def test_a_normalised_latent_has_unit_scale_however_small_the_embeddings_are(latent_norm):
    for scale in (1e-3, 1.0):
        latent = normalise(scale * torch.tensor([[1.0, -1.0, 3.0]]), latent_norm)
        assert latent.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.01)
        if latent_norm == "layernorm":
            assert latent.mean().item() == pytest.approx(0.0, abs=1e-6)


def emit(config: PooledConfig, history: InterestInput, item: torch.Tensor, interest: torch.Tensor):
    pooled = HistoryPooling(config, DIMS)(history)
    emission = Emission(config, dim=3)
    parts = emission(interest, pooled=pooled, item=item)
    assert parts.shape[1] == emission.width
    return parts, pooled


def test_emitted_parts_stand_in_the_order_that_was_asked_for():
    config = PooledConfig(
        kind="pooled",
        recency_segments=(1,),
        emit=("interest_item", "pooled", "interest"),
    )
    history = gated_pool([BEHAVIOURS[:1], BEHAVIOURS[1:4]])
    item, interest = BEHAVIOURS[5].unsqueeze(0), BEHAVIOURS[4].unsqueeze(0)
    parts, pooled = emit(config, history, item, interest)
    expected = [interest * item, pooled.latent, interest]
    torch.testing.assert_close(parts, torch.cat(expected, dim=1))


def test_the_product_with_the_item_has_the_scale_of_the_latent():
    config = PooledConfig(kind="pooled", emit=("interest_item",), latent_norm="layernorm")
    item, interest = 1e-2 * BEHAVIOURS[5].unsqueeze(0), BEHAVIOURS[4].unsqueeze(0)
    parts, _ = emit(config, gated_pool([BEHAVIOURS]), item, interest)
    torch.testing.assert_close(parts, interest * normalise(item, "layernorm"))
    assert parts.square().mean() > 1.0


def test_monitors_measure_the_histories_that_are_there():
    module = pooling()
    sums = torch.tensor([[[1.0, -1.0, 1.0]], [[-3.0, 3.0, -3.0]], [[0.0, 0.0, 0.0]]])
    pooled = module(pool(sums, torch.tensor([[1.0], [1.0], [0.0]])))
    monitors = module.monitors(pooled)
    assert monitors["empty_history"].item() == pytest.approx(1 / 3)
    assert monitors["latent_std"].item() == pytest.approx(sums[:2].std(correction=0).item())


@pytest.mark.parametrize("parts", [(), ("interest", "interest")])
def test_emitting_nothing_or_twice_the_same_is_refused(parts):
    with pytest.raises(ValidationError, match="emit"):
        PooledConfig(kind="pooled", emit=parts)


def test_pools_that_are_missing_or_of_another_shape_are_refused(make_inputs, make_module):
    """Fails where one segment, row or column is read as if it were all: sums broadcast."""
    module = make_module("interest/cdp")
    inputs = make_inputs(num_segments=7)
    for changed, message in [
        (replace(inputs, pool=None), r"InterestInput\.pool is missing"),
        (make_inputs(num_segments=1), r"pool\.sums: expected 7 segments, found 1"),
        (
            replace(inputs, pool=replace(inputs.pool, lengths=inputs.pool.lengths[:, 0])),
            r"pool\.lengths: expected \[B, K\], found \[\d+\]",
        ),
        (
            replace(inputs, pool=replace(inputs.pool, sums=inputs.pool.sums[:1])),
            r"pool\.sums: expected 12 impressions, found 1",
        ),
        (
            replace(inputs, pool=replace(inputs.pool, lengths=inputs.pool.lengths[:1])),
            r"pool\.lengths: expected 12 impressions, found 1",
        ),
        (
            replace(inputs, pool=replace(inputs.pool, sums=inputs.pool.sums[:, :, :1])),
            r"pool\.sums: expected width \d+, found 1",
        ),
        (
            replace(inputs, part=replace(inputs.part, sums=inputs.part.sums[:1])),
            r"part\.sums: expected 12 impressions, found 1",
        ),
        (replace(inputs, part=None), r"InterestInput\.part is missing"),
        (replace(inputs, part=inputs.pool), r"part\.sums: expected 1 segments, found 7"),
    ]:
        with pytest.raises(ValueError, match=message):
            module(changed)


def test_settings_of_a_layer_are_there_for_models_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_interest("configs/interest/cdp.toml", "model.interest.recency_segments=[]")
    assert isinstance(config, CdpConfig)
    assert (config.noise_level, config.num_segments) == ("evidence", 1)
    with pytest.raises(ConfigError, match="unknown key"):
        load_interest("configs/interest/counts.toml")
