"""Where the time of a training step goes."""

import re
from collections import defaultdict

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cdp_torchrec.benchmark.training.contestants import Contestant
from cdp_torchrec.timer import synchronize

OTHER = "other tensor work"
KINDS = {
    "communication": r"c10d|gloo|nccl|all_?(to|2)_?all|splits_dist|wait|barrier",
    "embedding lookup": r"fbgemm|embedding|lookup|permute|jagged",
    "matrix products": r"mm$|addmm|bmm|linear|mkldnn|gemm|cutlass|scaled_dot_product",
    # In place: models add products and interpolate, too, but into tensors of their own.
    "optimizer": r"^Optimizer|_foreach|fused_?adam|(addcdiv|addcmul|lerp)_$|multi_tensor",
}
"""Operations of each kind, by a pattern of their names; the first that is found counts."""


def profile_training(
    contestant: Contestant, device: torch.device, *, num_steps: int
) -> dict[str, float]:
    """Share of a training step by kind of work on this rank; sums to 1. Collective.

    CPU time, or on a GPU its kernels' time.

    Args:
        contestant: what trains.
        device: where this rank computes.
        num_steps: steps to look at, after one that warms up.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    contestant.step()
    with profile(activities=activities) as profiler:
        for _ in range(num_steps):
            contestant.step()
        synchronize(device)
    shares: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if device.type == "cpu":
            shares[kind_of(event.key)] += event.self_cpu_time_total
        # An operator has the time of its kernels, too, and so has a range around them.
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            shares[kind_of(event.key)] += event.self_device_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in sorted(shares.items(), key=lambda s: -s[1])}


def kind_of(operation: str) -> str:
    """Kind of work that an operation of the profiler is."""
    kinds = (k for k, pattern in KINDS.items() if re.search(pattern, operation, re.IGNORECASE))
    return next(kinds, OTHER)
