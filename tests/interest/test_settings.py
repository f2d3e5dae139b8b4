"""Every setting of every interest module changes the module, or is refused."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from cdp_torchrec.config import ConfigError
from cdp_torchrec.config.keys import KeyNode, key_tree, tables_of, toml_value
from cdp_torchrec.interest import InterestConfig, InterestDims, build_interest
from tests.interest.conftest import Experiment, LoadInterest, MakeInputs
from tests.interest.variants import ABLATIONS, CDP_FAMILY, PRESETS, Variant

SMALL: dict[str, Variant] = dict.fromkeys(("interest/twin", "interest/twin_v2"), ("num_kept=5",))
"""Where heads keep all behaviours of inputs as small as these, they do not choose."""
KNOWN: dict[Variant, str] = {("interest/cdp", "ablation/no_condition"): "recon_detach"}
"""There is no expert that the noise loss could train; a key of another section says so."""
NAMES = ("collaborative", "context", "scene", "interest", "interest_item", "pooled", "action")
"""Elements that lists of names may have."""


def others(node: KeyNode, value: Any) -> list[Any]:
    """Other values that a setting may have, as far as its type tells."""
    if node.choices:
        return [choice for choice in node.choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, list):
        longer = [[*value, new] for new in ([1, 5] if "integer" in node.allowed else NAMES)]
        return [*([value[:-1]] if value else []), *longer]
    number = value or 0
    if "integer" in node.allowed:
        return [new for new in (number + 1, 2 * number, number // 2, 1, 2, 3) if new != value]
    return [new for new in (1.5 * number, 0.5 * number, 0.3, 0.9) if new != value]


def settings(
    node: KeyNode, values: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, KeyNode, Any]]:
    """Keys of a table, each with other values."""
    for name, child in node.keys.items():
        if child.keys:
            yield from settings(child, values[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child, others(child, values.get(name))


def traces(config: InterestConfig, dims: InterestDims, make_inputs: MakeInputs) -> list[Any]:
    """All that can be seen of a module: what it reads and has, gives, and learns."""
    torch.manual_seed(0)
    module = build_interest(config, dims)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    segments = config.history.num_pool_segments if config.history.pool_segments is not None else 1
    inputs = make_inputs(dims, num_segments=segments, requires_grad=True)
    inputs = replace(inputs, progress=torch.ones(len(inputs.key)))  # amid the curriculum
    seen: list[Any] = [config.history, config.searches, module.loss_weights]
    seen.append({name: value.shape for name, value in module.state_dict().items()})
    seen.append(module.eval()(inputs).interest)
    output = module.train()(inputs)
    trained = [output.interest, *output.losses.values(), *output.click_logits.values()]
    seen += trained
    total = sum((part.sum() for part in trained), start=torch.zeros(()))
    if total.requires_grad:
        total.backward()
    leaves = [inputs.user, inputs.query, inputs.item, inputs.item_attributes, inputs.scene]
    leaves += [pool.sums for pool in (inputs.pool, inputs.part, inputs.whole) if pool]
    leaves += [inputs.gated.item, inputs.recent.item] if inputs.gated and inputs.recent else []
    seen += [parameter.grad for parameter in (*module.parameters(), *leaves)]
    return seen


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else type(a) is type(b) and a == b
        for a, b in zip(one, other, strict=True)
    )


WITHOUT_A_PART: list[Variant] = [
    *[(preset, f"ablation/{ablation}") for preset in CDP_FAMILY for ablation in ABLATIONS],
    ("interest/cdp_paper", "ablation/x0_onestep"),
    ("interest/cdp_paper", "ablation/unrolled"),
    ("interest/cdp_paper", "noise_loss_weight=0.0"),
    ("interest/cdp_timestep", "start=clean", "num_inference_steps=0"),
    ("interest/cdp", "ablation/no_completion"),
    ("interest/dien", "auxiliary_loss_weight=0.0"),
    ("interest/cadirec", "contrastive_loss_weight=0.0"),
    ("interest/cddrec", "in_view_loss_weight=0.0", "cross_view_loss_weight=0.0"),
    ("interest/cddrec", "ranking_loss_weight=0.0", "cross_view_loss_weight=0.0"),
    ("interest/diffumin", "denoise_loss_weight=0.0"),
    ("interest/diffumin", "contrastive_loss_weight=0.0"),
    ("interest/longer", "group_size=1"),
    ("interest/longer", "num_layers=1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [*[(f"interest/{preset}",) for preset in PRESETS], *WITHOUT_A_PART], ids=" ".join
)
def test_every_setting_changes_the_module_or_is_refused(
    layers: Variant, load_interest: LoadInterest, make_inputs: MakeInputs, dims: InterestDims
) -> None:
    layers = (*layers, *SMALL.get(layers[0], ()))
    config = load_interest(*layers)
    before = traces(config, dims, make_inputs)
    assert same(before, traces(config, dims, make_inputs))
    tree = key_tree(Experiment).keys["model"].keys["interest"].table(config.kind)
    for key, node, values in settings(tree, tables_of(config), ""):
        is_idle = False
        for value in values:
            try:
                changed = load_interest(*layers, f"{key}={toml_value(value)}")
                # What is not read may be set to its default.
                is_idle = value != node.default and same(before, traces(changed, dims, make_inputs))
            except ConfigError as error:
                if "has no effect with" not in str(error):
                    continue
                is_idle = False
            if not is_idle:
                break
        assert not is_idle or key == KNOWN.get(layers), f"{key} changes nothing: {values}"
