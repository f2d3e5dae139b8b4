"""The Triton kernel of `fused.py`; needs triton, and under TRITON_INTERPRET=1 no GPU."""

# B impressions, D latent dim, H hidden width, M modulation width, K sampled steps

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_NUM_COEFFICIENTS = 5
_BLOCK = 64
"""Impressions of a program: the fewest that Hopper's matrix units multiply."""
_NUM_WARPS = 4
_PRECISION = "tf32x3"
"""Three products of tensor cores in TF32, together as exact as one in float32. On an H200 ten times
as fast as its float32 units ("ieee") at 16,384 impressions; "bf16x6" differs by at most a fifth."""
_LAYER_NORM_EPS = 1e-5
"""That of torch.nn.functional.layer_norm."""


@triton.jit
def _denoise(
    x_start,  # [B, D]
    modulation,  # [B, M]
    step_modulation,  # [K, M]
    coefficients,  # [K, 5]
    first_weight,  # [H, D]
    first_bias,  # [H]
    middle_weight,  # [H, H]
    middle_bias,  # [H]
    last_weight,  # [D, H]
    last_bias,  # [D]
    out,  # [B, D]
    count,
    NUM_STEPS: tl.constexpr,
    JOIN: tl.constexpr,
    HAS_MIDDLE: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    M: tl.constexpr,
    NUM_COEFFICIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    inside = row < count
    d, h = tl.arange(0, D), tl.arange(0, H)
    # Weights, [in, out], and the condition's part of the modulation: loaded once for all steps.
    first = tl.load(first_weight + h[None, :] * D + d[:, None])
    last = tl.load(last_weight + d[None, :] * H + h[:, None])
    shift_of_first = tl.load(first_bias + h)[None, :]
    shift_of_last = tl.load(last_bias + d)[None, :]
    middle, shift_of_middle, middle_scale, middle_shift, shift, gate = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if HAS_MIDDLE:
        middle = tl.load(middle_weight + h[None, :] * H + h[:, None])
        shift_of_middle = tl.load(middle_bias + h)[None, :]
    own = modulation + row.to(tl.int64) * M
    if JOIN == "adaln_zero":
        scale = tl.load(own + d[None, :], mask=inside, other=0.0)
        shift = tl.load(own + D + d[None, :], mask=inside, other=0.0)
        gate = tl.load(own + 2 * D + d[None, :], mask=inside, other=0.0)
    else:
        scale = tl.load(own + h[None, :], mask=inside, other=0.0)
        if JOIN == "film":
            shift = tl.load(own + H + h[None, :], mask=inside, other=0.0)
            if HAS_MIDDLE:
                middle_scale = tl.load(own + 2 * H + h[None, :], mask=inside, other=0.0)
                middle_shift = tl.load(own + 3 * H + h[None, :], mask=inside, other=0.0)

    x = tl.load(x_start + row.to(tl.int64) * D + d[None, :], mask=inside, other=0.0)
    previous = tl.zeros([BLOCK, D], tl.float32)
    for step in range(NUM_STEPS):
        time = step_modulation + step * M
        entering = x
        if JOIN == "adaln_zero":
            centred = x - tl.sum(x, axis=1)[:, None] / D
            variance = tl.sum(centred * centred, axis=1)[:, None] / D
            normalised = centred / tl.sqrt(variance + EPS)
            now_scale = scale + tl.load(time + d)[None, :]
            entering = shift + tl.load(time + D + d)[None, :] + normalised * now_scale
        hidden = tl.dot(entering, first, input_precision=PRECISION)
        if JOIN == "add":
            hidden += scale + tl.load(time + h)[None, :]
        else:
            hidden += shift_of_first
        if JOIN == "film":
            now_scale = scale + tl.load(time + h)[None, :]
            hidden = shift + tl.load(time + H + h)[None, :] + hidden * now_scale
        hidden = tl.maximum(hidden, 0.0)
        if HAS_MIDDLE:
            hidden = tl.dot(hidden, middle, input_precision=PRECISION) + shift_of_middle
            if JOIN == "film":
                now_scale = middle_scale + tl.load(time + 2 * H + h)[None, :]
                hidden = middle_shift + tl.load(time + 3 * H + h)[None, :] + hidden * now_scale
            hidden = tl.maximum(hidden, 0.0)
        correction = tl.dot(hidden, last, input_precision=PRECISION) + shift_of_last
        if JOIN == "adaln_zero":
            correction *= gate + tl.load(time + 2 * D + d)[None, :]
        row_of = coefficients + step * NUM_COEFFICIENTS
        x_0 = correction * tl.load(row_of) + x * tl.load(row_of + 1)
        x = x * tl.load(row_of + 2) + x_0 * tl.load(row_of + 3) + previous * tl.load(row_of + 4)
        previous = x_0
    tl.store(out + row.to(tl.int64) * D + d[None, :], x, mask=inside)


def launch(*tensors: Tensor, join: str, has_middle: bool, kernel: Any = _denoise) -> Tensor:
    """Clean latent [B, D] of start states.

    Args:
        tensors: contiguous, on one device, as `launch_in_graph` names them and in its order.
        join: how the modulation enters, as `DenoiserConfig.condition_join`.
        has_middle: whether there are two hidden layers.
        kernel: `_denoise`, or what a graph holds in its place.
    """
    x_start, modulation, step_modulation, _, first_weight, *_ = tensors
    count, dim = x_start.shape
    out = torch.empty_like(x_start)
    kernel[(triton.cdiv(count, _BLOCK),)](
        *tensors,
        out,
        count,
        NUM_STEPS=step_modulation.shape[0],
        JOIN=join,
        HAS_MIDDLE=has_middle,
        D=dim,
        H=first_weight.shape[0],
        M=modulation.shape[1],
        NUM_COEFFICIENTS=_NUM_COEFFICIENTS,
        BLOCK=_BLOCK,
        EPS=_LAYER_NORM_EPS,
        PRECISION=_PRECISION,
        num_warps=_NUM_WARPS,
    )
    return out


@triton_op("cdp_torchrec::denoise", mutates_args={})
def launch_in_graph(
    x_start: Tensor,
    modulation: Tensor,
    step_modulation: Tensor,
    coefficients: Tensor,
    first_weight: Tensor,
    first_bias: Tensor,
    middle_weight: Tensor,
    middle_bias: Tensor,
    last_weight: Tensor,
    last_bias: Tensor,
    join: str,
    has_middle: bool,
) -> Tensor:
    """`launch` for torch.compile and torch.export, which keep it as one kernel.

    Args:
        x_start: [B, D].
        modulation: part that depends on the condition, [B, M].
        step_modulation: part that depends on the step, [K, M].
        coefficients: from `linear_steps`, [K, 5].
        first_weight: [H, D].
        first_bias: [H]; any floats with `join` "add", which has none.
        middle_weight: [H, H]; any floats without a second hidden layer.
        middle_bias: [H]; as its weight.
        last_weight: [D, H].
        last_bias: [D].
        join: as of `launch`.
        has_middle: as of `launch`.
    """
    return launch(
        x_start,
        modulation,
        step_modulation,
        coefficients,
        first_weight,
        first_bias,
        middle_weight,
        middle_bias,
        last_weight,
        last_bias,
        join=join,
        has_middle=has_middle,
        kernel=wrap_triton(_denoise),
    )
