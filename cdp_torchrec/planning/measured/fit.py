"""Bandwidths that make the planner's estimates match what was measured."""

# P points, C constants, K pieces

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from cdp_torchrec.planning.measured.sharded_tables import Piece

_FEWEST_POINTS = 3
_OUTLIER = 0.5
"""Difference of logarithms from which on a point counts linearly instead of squared."""
_SMALLEST_MS = 1e-3


@dataclass(frozen=True)
class Point:
    """One piece of the work with one table under one sharding."""

    table: str
    sharding_type: str
    compute_kernel: str
    plans: tuple[str, ...]
    """That shard the table so."""
    piece: Piece
    measured_ms: float
    """On the slowest rank."""
    parts_ms: Mapping[str, float]
    """Estimate, on the rank with the largest: its parts by the bandwidth that each is divided by,
    and "other"."""

    @property
    def estimated_ms(self) -> float:
        """With the bandwidths that the estimates were made with."""
        return sum(self.parts_ms.values())


@dataclass(frozen=True)
class Fit:
    """Bandwidths, and what no bandwidth explains."""

    slowdown: Mapping[str, float]
    """By constant: old over fitted bandwidth. Constants that the points do not reveal are left
    out, and stay as they are."""
    fixed_ms: Mapping[Piece, float]
    """Time that a piece takes however little there is to do; the planner knows none."""

    def estimate(self, point: Point, *, fixed: bool) -> float:
        """Milliseconds of a point.

        Args:
            point: the point.
            fixed: with the fixed cost of its piece, instead of as the planner will estimate.
        """
        total = sum(ms * self.slowdown.get(name, 1.0) for name, ms in point.parts_ms.items())
        return total + (self.fixed_ms.get(point.piece, 0.0) if fixed else 0.0)


UNFITTED = Fit(slowdown={}, fixed_ms={})


@dataclass(frozen=True)
class Error:
    """How far estimates are from measurements."""

    factor: float
    """Median of the factor between the two; 1 is perfect."""
    missed: float
    """Sum of the absolute differences, as a share of the measured time."""
    num_points: int


def fit(points: Sequence[Point], constants: Sequence[str]) -> Fit:
    """Fit bandwidths and one fixed cost for each piece, by least squares on logarithms.

    With the fixed costs, small tables do not pass as slow memory or a slow network. Outliers count
    linearly. A constant is kept as it is unless it decides most of the time of a few points.

    Args:
        points: measurements with an estimate above 0.
        constants: names of the bandwidths to fit, among the parts of the points.
    """
    pieces = sorted({point.piece for point in points})
    parts = _tensor([[p.parts_ms.get(name, 0.0) for name in constants] for p in points])  # [P, C]
    rest = _tensor([p.estimated_ms for p in points]) - parts.sum(1)
    measured = _tensor([p.measured_ms for p in points]).clamp_min(_SMALLEST_MS)
    piece = torch.tensor([pieces.index(p.piece) for p in points])
    smallest = torch.stack([measured[piece == place].min() for place in range(len(pieces))])
    # Logarithms keep both positive.
    slowdown = torch.zeros(len(constants), dtype=torch.float64, requires_grad=True)
    fixed = (smallest / 2).log().requires_grad_()
    optimizer = torch.optim.LBFGS([slowdown, fixed], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        estimated = parts @ slowdown.exp() + rest.clamp_min(0) + fixed.exp()[piece]
        value = huber_loss(estimated.log(), measured.log(), delta=_OUTLIER)
        value.backward()
        return value

    optimizer.step(loss)
    factors, costs = slowdown.detach().exp(), fixed.detach().exp()
    estimated = parts @ factors + rest + costs[piece]
    decides = (parts * factors > 0.5 * estimated[:, None]).sum(0)  # [C]
    return Fit(
        slowdown={
            name: float(factors[place])
            for place, name in enumerate(constants)
            if decides[place] >= _FEWEST_POINTS
        },
        fixed_ms={name: float(costs[place]) for place, name in enumerate(pieces)},
    )


def fit_by_others(points: Sequence[Point], constants: Sequence[str]) -> dict[str, Fit]:
    """For each sharding type a fit that has not seen it: what the fit is worth for other plans.

    Empty if there is only one type.
    """
    types = sorted({point.sharding_type for point in points})
    if len(types) == 1:
        return {}
    return {name: fit([p for p in points if p.sharding_type != name], constants) for name in types}


def error(estimated: Sequence[float], points: Sequence[Point]) -> Error:
    """Of estimates of these points, in milliseconds."""
    pairs = [
        (max(ms, _SMALLEST_MS), max(point.measured_ms, _SMALLEST_MS))
        for ms, point in zip(estimated, points, strict=True)
    ]
    return Error(
        factor=statistics.median(max(e / m, m / e) for e, m in pairs),
        missed=sum(abs(e - m) for e, m in pairs) / sum(m for _, m in pairs),
        num_points=len(pairs),
    )


def _tensor(values: Sequence[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
