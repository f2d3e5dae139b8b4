"""The contract of every interest module that the project ships, and of its ablations."""

import io
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from cdp_torchrec.interest import (
    GatedPool,
    InterestInput,
    InterestModule,
    PooledConfig,
    build_interest,
)
from cdp_torchrec.interest.pooling import HistoryPooling

PRESETS = ["none", "pooled", "condition_mlp", "cdp_paper", "cdp"]
WITH_HISTORY = [f"interest/{preset}" for preset in PRESETS[1:]]
ABLATIONS = ["no_condition", "no_collaborative", "no_context_scene", "no_moe"]
VARIANTS = [
    *[(preset,) for preset in WITH_HISTORY],
    *[(preset, f"ablation/{ablation}") for preset in WITH_HISTORY[1:] for ablation in ABLATIONS],
    ("interest/cdp_paper", "train_path=x0_onestep"),
    ("interest/cdp_paper", "train_path=unrolled"),
    ("interest/cdp", "denoiser.condition_join=film", "condition.fusion=concat_mlp"),
    ("interest/cdp", "sampler=dpmpp_2m", "prediction_type=v", "latent_norm=l2"),
    ("interest/cdp", "schedule.beta_schedule=cosine", "start_timestep=60"),
]


def num_segments(module: InterestModule) -> int:
    assert isinstance(module.pooling, HistoryPooling)
    return 1 if module.pooling.log_weights is None else len(module.pooling.log_weights)


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_output_is_finite_and_as_wide_as_declared(make_module, make_inputs, variant):
    module = make_module(*variant)
    for mode in (True, False):
        output = module.train(mode)(make_inputs(num_segments=num_segments(module)))
        assert output.interest.shape == (12, module.interest_dim)
        assert output.interest.isfinite().all()
        assert set(output.losses) == (set(module.loss_weights) if mode else set())
        assert all(loss.shape == (12,) and loss.isfinite().all() for loss in output.losses.values())


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_gradients_reach_every_parameter(make_module, make_inputs, variant):
    module = make_module(*variant)
    output = module(make_inputs(num_segments=num_segments(module)))
    # A random projection: the sum of a layer norm is constant.
    total = (output.interest * torch.randn_like(output.interest)).sum()
    (total + sum(loss.sum() for loss in output.losses.values())).backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_histories_that_are_all_empty_give_finite_gradients(make_module, make_inputs, variant):
    module = make_module(*variant)
    inputs = make_inputs(num_segments=num_segments(module), requires_grad=True)
    sums = torch.zeros_like(inputs.history.sums, requires_grad=True)
    history = replace(inputs.history, sums=sums, lengths=torch.zeros_like(inputs.history.lengths))
    output = module(replace(inputs, history=history))
    (output.interest.sum() + sum(loss.sum() for loss in output.losses.values())).backward()
    assert output.interest.isfinite().all()
    assert all(value.isfinite() for value in output.monitors.values())
    # Without the collaborative expert the target item is not used at all.
    gradients = [p.grad for p in module.parameters()] + [inputs.item.grad, sums.grad]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("preset", WITH_HISTORY)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(make_module, make_inputs, preset):
    module = make_module(preset).eval()
    inputs = make_inputs(num_segments=num_segments(module))
    interest = module(inputs).interest
    others = make_inputs(num_segments=num_segments(module), seed=1)
    mixed = select(inputs, others, keep=torch.arange(12) == 5)
    assert torch.equal(module(mixed).interest[5], interest[5])
    order = torch.arange(12).flip(0)
    torch.testing.assert_close(module(rows(inputs, order)).interest, interest[order])
    alone = module(rows(inputs, torch.tensor([5]))).interest
    torch.testing.assert_close(alone, interest[5:6], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", WITH_HISTORY)
@pytest.mark.parametrize("missing", ["user", "query", "item_attributes", "context", "scene"])
def test_a_dataset_may_lack_any_role(make_module, make_inputs, dims, preset, missing):
    dims = replace(dims, **{missing: 0})
    module = make_module(preset, dims=dims)
    output = module(make_inputs(dims, num_segments=num_segments(module)))
    assert output.interest.isfinite().all()


def test_none_adds_nothing(make_module, make_inputs):
    module = make_module("interest/none")
    assert module.history == "none"
    assert module.interest_dim == 0
    assert module(replace(make_inputs(), history=None)).interest.shape == (12, 0)


def test_cdp_and_its_floors_hand_the_same_parts_to_the_tower(load_interest):
    cdp, condition_mlp = load_interest("interest/cdp"), load_interest("interest/condition_mlp")
    pooled = load_interest("interest/pooled")
    for key in ("emit", "recency_segments", "latent_norm"):
        assert getattr(pooled, key) == getattr(condition_mlp, key) == getattr(cdp, key)
    assert condition_mlp.condition == cdp.condition
    assert condition_mlp.network == cdp.denoiser


def test_a_preset_leaves_nothing_of_the_preset_below_it(load_interest):
    for below, preset in permutations(PRESETS, 2):
        layered = load_interest(f"interest/{below}", f"interest/{preset}")
        assert layered == load_interest(f"interest/{preset}")


def test_a_lookup_with_other_segments_is_refused(dims):
    config = PooledConfig(kind="pooled", recency_segments=(1, 4))
    with pytest.raises(ValueError, match=r"\[1, 4\] makes 3 segments, but .* looked up in 1"):
        build_interest(config, dims, num_segments=1)


# Two steps stand for twenty: compilers unroll the loop.
COMPILED = [
    ("interest/pooled",),
    ("interest/condition_mlp",),
    ("interest/cdp_paper", "num_inference_steps=2"),
    ("interest/cdp", "num_inference_steps=2"),
]


class OnTensors(nn.Module):
    """An interest module that takes and gives tensors, as torch.export wants it."""

    def __init__(self, module: InterestModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.module(from_tensors(list(tensors))).interest


@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_export_round_trips_with_any_batch_size(make_module, make_inputs, variant):
    module = make_module(*variant).eval()
    segments = num_segments(module)
    tensors = as_tensors(make_inputs(num_segments=segments))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        OnTensors(module), tensors, dynamic_shapes=(tuple({0: batch} for _ in tensors),)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (2, 30):
        inputs = make_inputs(num_segments=segments, batch=size, seed=size)
        torch.testing.assert_close(loaded(*as_tensors(inputs)), module(inputs).interest)


@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_compile_captures_the_whole_module(make_module, make_inputs, variant):
    check_compiled(make_module(*variant), make_inputs, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_compiled_code_equals_eager(make_module, make_inputs, variant):
    check_compiled(make_module(*variant), make_inputs, backend="inductor")


def check_compiled(module: InterestModule, make_inputs, *, backend: str) -> None:
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    segments = num_segments(module)
    gradients = []
    outputs = []
    for run in (module, compiled):
        inputs = make_inputs(num_segments=segments, requires_grad=True)
        output = run(inputs)
        total = output.interest.square().sum() + sum(v.sum() for v in output.losses.values())
        module.zero_grad()
        total.backward()
        outputs.append((output.interest, dict(output.losses), dict(output.monitors)))
        gradients.append([p.grad for p in module.parameters()] + [inputs.item.grad])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def as_tensors(inputs: InterestInput) -> tuple[Tensor, ...]:
    assert inputs.history is not None
    return (
        inputs.user,
        inputs.query,
        inputs.item,
        inputs.item_attributes,
        inputs.context,
        inputs.scene,
        inputs.key,
        inputs.history.sums,
        inputs.history.lengths,
        inputs.history.matches,
    )


def from_tensors(tensors: list[Tensor]) -> InterestInput:
    *roles, key, sums, lengths, matches = tensors
    history = GatedPool(sums=sums, lengths=lengths, matches=matches)
    return InterestInput(*roles, key=key, history=history)


def rows(inputs: InterestInput, index: Tensor) -> InterestInput:
    return from_tensors([tensor[index] for tensor in as_tensors(inputs)])


def select(inputs: InterestInput, others: InterestInput, *, keep: Tensor) -> InterestInput:
    pairs = zip(as_tensors(inputs), as_tensors(others), strict=True)
    return from_tensors([a.where(keep.view(-1, *[1] * (a.dim() - 1)), b) for a, b in pairs])
