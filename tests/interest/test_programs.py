"""Interest modules as programs: exported with free sizes, captured whole by torch.compile."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cdp_torchrec.data.history.sequence_index import CandidateBlock, SequenceBlock, SequenceIndex
from cdp_torchrec.interest import BehaviourSequence, GatedPool, InterestInput, InterestModule
from tests.interest.variants import ATTENTIVE, VARIANTS, WITH_HISTORY, Variant, auxiliary, segments
from tests.whole_matrix import KINDS, WHOLE_MATRIX, only_whole

# Two steps stand for twenty, and one layer for several: compilers unroll the loop.
FEWER = {
    **dict.fromkeys(("cdp_timestep", "cdp_paper", "diffumin"), "num_inference_steps=2"),
    **dict.fromkeys(("diff4rec", "longer", "mtgr"), "num_layers=1"),
}
PRESETS: list[Variant] = [
    (name, FEWER[Path(name).name]) if Path(name).name in FEWER else (name,)
    for (name,) in WITH_HISTORY
]
# Presets keep more behaviours than these tests have: in variants the search has to choose.
PROGRAMS = [
    *PRESETS,
    *[v for v in VARIANTS if v[0] in (*ATTENTIVE, "interest/sasrec") and v not in PRESETS],
    ("interest/diffumin", "num_kept=3", "num_inference_steps=2"),
]
EXPORTED: list[Variant] = [("interest/pooled",)]
"""tests/serving/test_ranker.py exports whole rankers with modules of all kinds."""
CAPTURED: list[Variant] = [
    ("interest/cdp_timestep", "num_inference_steps=2"),
    ("interest/sasrec", "num_heads=2", "next_item_loss_weight=0.1"),
]
"""A chain and a whole sequence; one of each other kind is slow."""
OF_EACH_KIND = [v for v in PRESETS if Path(v[0]).name in KINDS]
COMPILED: list[Variant] = PRESETS if WHOLE_MATRIX else [("interest/twin",)]
"""A minute of compilers each. The artifact of tests/serving has a chain."""


def of_all_programs(variants: Sequence[Variant], *, slow: Sequence[Variant] = ()) -> list[object]:
    """Those variants, those that are slow, and all others, which run with all combinations only."""
    assert {*variants, *slow} <= set(PROGRAMS)

    def marks(variant: Variant) -> list[pytest.MarkDecorator]:
        if variant in variants:
            return []
        return [pytest.mark.slow] if variant in slow else [pytest.mark.slow, only_whole]

    return [pytest.param(v, marks=marks(v), id="+".join(v)) for v in PROGRAMS]


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


@pytest.mark.parametrize("variant", of_all_programs(EXPORTED))
def test_export_round_trips_with_any_batch_size(make_module, make_inputs, variant):
    module = make_module(*variant).eval()
    # No size is 1: export would take it for a constant. One block of each kind, as in serving.
    inputs = make_inputs(num_segments=segments(module), batch=20, lengths=[0, 3, 8, 7, 5])
    tensors, structure = pytree.tree_flatten(inputs)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in tensors)
    exported = OnTensors(module, structure)
    program = torch.export.export(exported, tuple(tensors), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    larger = make_inputs(
        num_segments=segments(module), batch=24, lengths=[0, 5, 7, 8, 6, 2], seed=1
    )
    result = loaded(*pytree.tree_leaves(larger))
    torch.testing.assert_close(result, module(larger).interest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", of_all_programs(CAPTURED, slow=OF_EACH_KIND))
def test_compile_captures_the_whole_module(make_module, make_inputs, variant):
    check_compiled(make_module(*variant), make_inputs, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPILED, ids="+".join)
def test_compiled_code_equals_eager(make_module, make_inputs, variant):
    # Few behaviours: compilers unroll DIEN's recurrence.
    check_compiled(make_module(*variant), make_inputs, backend="inductor", lengths=[0, 3, 1, 2])


def check_compiled(
    module: InterestModule, make_inputs, *, backend: str, lengths: list[int] | None = None
) -> None:
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    gradients = []
    outputs = []
    for run in (module, compiled):
        inputs = make_inputs(num_segments=segments(module), lengths=lengths, requires_grad=True)
        output = run(inputs)
        total = output.interest.square().sum() + sum(v.sum() for v in auxiliary(output).values())
        module.zero_grad()
        total.backward()
        outputs.append((output.interest, auxiliary(output), dict(output.monitors)))
        gradients.append([p.grad for p in module.parameters()] + [inputs.item.grad])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
