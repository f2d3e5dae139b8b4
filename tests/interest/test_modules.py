"""The contract of every interest module that the project ships, and of its ablations."""

import io
from dataclasses import fields, is_dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cdp_torchrec.data.sequence_index import (
    CandidateBlock,
    SequenceBlock,
    SequenceColumns,
    SequenceIndex,
    index_sequences,
)
from cdp_torchrec.interest import BehaviourSequence, GatedPool, InterestInput, InterestModule
from tests.paths import CONFIGS

PRESETS = sorted(path.stem for path in (CONFIGS / "interest").glob("*.toml"))
WITH_HISTORY = [f"interest/{preset}" for preset in PRESETS if preset not in ("none", "counts")]
CDP_FAMILY = ["interest/condition_mlp", "interest/cdp_paper", "interest/cdp"]
ABLATIONS = ["no_condition", "no_collaborative", "no_context_scene", "no_moe"]
VARIANTS = [
    *[(preset,) for preset in WITH_HISTORY],
    *[(preset, f"ablation/{ablation}") for preset in CDP_FAMILY for ablation in ABLATIONS],
    ("interest/cdp_paper", "train_path=x0_onestep"),
    ("interest/cdp_paper", "train_path=unrolled"),
    ("interest/cdp", "denoiser.condition_join=film", "condition.fusion=concat_mlp"),
    ("interest/cdp", "sampler=dpmpp_2m", "prediction_type=v", "latent_norm=l2"),
    ("interest/cdp", "schedule.beta_schedule=cosine", "start_timestep=60"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_output_is_finite_and_as_wide_as_declared(make_module, make_inputs, variant):
    module = make_module(*variant)
    for mode in (True, False):
        output = module.train(mode)(make_inputs(num_segments=segments(module)))
        assert output.interest.shape == (12, module.interest_dim)
        assert output.interest.isfinite().all()
        auxiliary = set(output.losses) | set(output.click_logits)
        assert auxiliary == (set(module.loss_weights) if mode else set())
        assert all(loss.shape == (12,) and loss.isfinite().all() for loss in output.losses.values())


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_gradients_reach_every_parameter(make_module, make_inputs, variant):
    module = make_module(*variant)
    output = module(make_inputs(num_segments=segments(module)))
    # A random projection: the sum of a layer norm is constant.
    total = (output.interest * torch.randn_like(output.interest)).sum()
    auxiliary = [*output.losses.values(), *output.click_logits.values()]
    (total + sum(loss.sum() for loss in auxiliary)).backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("variant", VARIANTS, ids="+".join)
def test_histories_that_are_all_empty_give_finite_gradients(make_module, make_inputs, variant):
    module = make_module(*variant)
    inputs = make_inputs(num_segments=segments(module), lengths=[0, 0], requires_grad=True)
    assert inputs.pool is not None and not inputs.pool.lengths.any()
    output = module(inputs)
    (output.interest.sum() + sum(loss.sum() for loss in output.losses.values())).backward()
    assert output.interest.isfinite().all()
    assert all(value.isfinite().all() for value in output.monitors.values())
    gradients = [p.grad for p in module.parameters()] + [inputs.item.grad]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("preset", WITH_HISTORY)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(make_module, make_inputs, preset):
    module = make_module(preset).eval()
    inputs = make_inputs(num_segments=segments(module))
    interest = module(inputs).interest
    assert torch.equal(module(inputs).interest, interest)
    for rows in (torch.arange(12).flip(0), torch.tensor([5]), torch.tensor([2, 3, 7])):
        alone = module(take(inputs, rows)).interest
        torch.testing.assert_close(alone, interest[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", [p for p in WITH_HISTORY if p != "interest/dien"])
def test_training_losses_do_not_depend_on_the_rest_of_the_batch(make_module, make_inputs, preset):
    """Randomness is a function of the impression's key; DIEN takes its negatives from the batch."""
    module = make_module(preset)
    inputs = make_inputs(num_segments=segments(module))
    rows = torch.tensor([1, 4, 9])
    losses, alone = module(inputs).losses, module(take(inputs, rows)).losses
    for name, loss in losses.items():
        torch.testing.assert_close(alone[name], loss[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", WITH_HISTORY)
@pytest.mark.parametrize("missing", ["user", "query", "item_attributes", "context", "scene"])
def test_a_dataset_may_lack_any_role(make_module, make_inputs, dims, preset, missing):
    dims = replace(dims, **{missing: 0})
    if missing == "item_attributes":
        dims = replace(dims, category=0)
    module = make_module(preset, dims=dims)
    output = module(make_inputs(dims, num_segments=segments(module)))
    assert output.interest.isfinite().all()


@pytest.mark.parametrize("preset", WITH_HISTORY)
def test_a_log_may_lack_action_types(make_module, make_inputs, dims, preset):
    dims = replace(dims, action=0)
    module = make_module(preset, dims=dims)
    assert module(make_inputs(dims, num_segments=segments(module))).interest.isfinite().all()


@pytest.mark.parametrize("preset", ["interest/none", "interest/counts"])
def test_none_adds_nothing(make_module, make_inputs, preset):
    module = make_module(preset)
    assert module.interest_dim == 0
    assert module(make_inputs()).interest.shape == (12, 0)


def test_cdp_and_its_floors_hand_the_same_parts_to_the_tower(load_interest):
    cdp, condition_mlp = load_interest("interest/cdp"), load_interest("interest/condition_mlp")
    pooled = load_interest("interest/pooled_attention")
    for key in ("emit", "pooling", "attention", "latent_norm"):
        assert getattr(pooled, key) == getattr(condition_mlp, key) == getattr(cdp, key)
    assert condition_mlp.condition == cdp.condition
    assert condition_mlp.network == cdp.denoiser


def test_a_preset_leaves_nothing_of_the_preset_below_it(load_interest):
    for below, preset in permutations(PRESETS, 2):
        layered = load_interest(f"interest/{below}", f"interest/{preset}")
        assert layered == load_interest(f"interest/{preset}")


# Two steps stand for twenty: compilers unroll the loop.
COMPILED = [
    (preset, "num_inference_steps=2")
    if preset in ("interest/cdp", "interest/cdp_paper")
    else (preset,)
    for preset in WITH_HISTORY
]


@pytest.fixture(scope="module", autouse=True)
def inputs_are_trees() -> None:
    """Inputs as torch.export wants them."""
    for kind in (
        InterestInput,
        GatedPool,
        BehaviourSequence,
        SequenceIndex,
        SequenceBlock,
        CandidateBlock,
    ):
        if kind not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(kind, serialized_type_name=kind.__qualname__)


class OnTensors(nn.Module):
    """An interest module that takes and gives tensors, as a saved program wants it."""

    def __init__(self, module: InterestModule, structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.module = module
        self.structure = structure

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.module(pytree.tree_unflatten(tensors, self.structure)).interest


@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_export_round_trips_with_any_batch_size(make_module, make_inputs, variant):
    module = make_module(*variant).eval()
    # No size is 1: export would take it for a constant.
    inputs = make_inputs(num_segments=segments(module), batch=20, lengths=[0, 3, 8, 21, 30])
    tensors, structure = pytree.tree_flatten(inputs)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in tensors)
    exported = OnTensors(module, structure)
    program = torch.export.export(exported, tuple(tensors), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    # Another size with blocks of the same lengths.
    larger = make_inputs(
        num_segments=segments(module), batch=24, lengths=[0, 5, 7, 30, 29, 31], seed=1
    )
    result = loaded(*pytree.tree_leaves(larger))
    torch.testing.assert_close(result, module(larger).interest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_compile_captures_the_whole_module(make_module, make_inputs, variant):
    check_compiled(make_module(*variant), make_inputs, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_compiled_code_equals_eager(make_module, make_inputs, variant):
    check_compiled(make_module(*variant), make_inputs, backend="inductor")


def check_compiled(module: InterestModule, make_inputs, *, backend: str) -> None:
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    gradients = []
    outputs = []
    for run in (module, compiled):
        inputs = make_inputs(num_segments=segments(module), requires_grad=True)
        output = run(inputs)
        total = output.interest.square().sum() + sum(v.sum() for v in output.losses.values())
        module.zero_grad()
        total.backward()
        outputs.append((output.interest, dict(output.losses), dict(output.monitors)))
        gradients.append([p.grad for p in module.parameters()] + [inputs.item.grad])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def segments(module: InterestModule) -> int:
    """Segments of the pooled history that a module reads; 1 if it reads none."""
    mean = getattr(getattr(module, "pooling", None), "mean", None)
    weights = getattr(mean, "log_weights", None)
    return 1 if weights is None else len(weights)


def take(inputs: InterestInput, rows: Tensor) -> InterestInput:
    """Some impressions as a batch of their own, with the sequences that they read."""
    taken: dict[str, Any] = {}
    for field in fields(InterestInput):
        value = getattr(inputs, field.name)
        if isinstance(value, BehaviourSequence):
            taken[field.name] = take_sequences(value, rows)
        elif is_dataclass(value):
            pool = {f.name: getattr(value, f.name)[rows] for f in fields(value)}
            taken[field.name] = replace(value, **pool)
        else:
            taken[field.name] = value[rows]
    return InterestInput(**taken)


def take_sequences(behaviours: BehaviourSequence, rows: Tensor) -> BehaviourSequence:
    index = behaviours.index
    wanted, sequence = index.sequence[rows].unique(return_inverse=True)
    kept = torch.cat([(index.owner == w).nonzero().flatten() for w in wanted])
    columns = SequenceColumns(
        item_id=index.item_id[kept].numpy(),
        category_id=index.category_id[kept].numpy(),
        age_s=index.age[kept].numpy().astype(np.float64),
        lengths=index.lengths[wanted].numpy(),
        sequence=sequence.numpy(),
    )
    return BehaviourSequence(
        item=behaviours.item[kept],
        category=behaviours.category[kept],
        action=behaviours.action[kept],
        index=index_sequences(columns, batch_size=len(rows)),
    )
