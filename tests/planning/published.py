"""Steps that others have published, and what this project estimates of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning.case import FeasiblePlan, make_cases
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.outside import read_outside
from cdp_torchrec.planning.outside_config import OutsideConfig
from cdp_torchrec.planning.outside_dense import count_outside

# facebookresearch/dlrm, torchrec_dlrm/README.MD, January 2022: Criteo's terabyte with one id for
# each feature, on GPUs of 40 GB in one node.
ROWS = (45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10)
ROWS += (2209, 11267, 128, 4, 974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35)


@dataclass(frozen=True)
class PublishedStep:
    """A training that was run."""

    world_size: int
    batch_size: int
    """Impressions per rank."""
    impressions_per_s: int

    @property
    def ms(self) -> float:
        """Of a step."""
        return 1e3 * self.world_size * self.batch_size / self.impressions_per_s


STEPS = (
    PublishedStep(8, 256, 284_615),
    PublishedStep(8, 2048, 1_671_168),
    PublishedStep(4, 4096, 1_458_176),
    PublishedStep(8, 8192, 5_373_952),
)


def estimated(step: PublishedStep, hardware: str = "a100-40") -> FeasiblePlan:
    """The same training as this project plans it."""
    config = OutsideConfig.model_validate(
        {
            "described": {
                "embedding_dim": 128,
                "tables": {f"cat_{place}": {"rows": rows} for place, rows in enumerate(ROWS)},
                "dense_features": 13,
                "dense_arch_layer_sizes": (512, 256, 128),
                "interaction": "dot",
                "over_arch_layer_sizes": (1024, 1024, 512, 256, 1),
            },
            "optimizer": {"sparse": {"kind": "sgd"}},
            "planning": {
                "hardware": (hardware,),
                "world_sizes": (step.world_size,),
                "batch_size": step.batch_size,
            },
        }
    )
    workload = read_outside(config)
    found = load_hardware(hardware)
    (case,) = make_cases(config, {hardware: found})
    dense = count_outside(workload)
    return FeasiblePlan(
        case=case,
        estimate=estimate(workload.problem(case)),
        dense_ms=dense.compute_ms(found),
        all_reduce_ms=dense.all_reduce_ms(found, step.world_size),
    )


def fit_step_ms(rest_ms: Sequence[float], measured_ms: Sequence[float]) -> float:
    """Fixed time of a step with which estimates come closest to measured steps.

    Least squares on logarithms, which have one minimum between the smallest and the largest time
    that is missing.

    Args:
        rest_ms: estimates without it.
        measured_ms: of the same steps.
    """
    missing = [m - rest for rest, m in zip(rest_ms, measured_ms, strict=True)]
    low, high = max(0.0, min(missing)), max(0.0, *missing)

    def loss(fixed: float) -> float:
        pairs = zip(rest_ms, measured_ms, strict=True)
        return sum(math.log((rest + fixed) / m) ** 2 for rest, m in pairs)

    while high - low > 1e-3:
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2
