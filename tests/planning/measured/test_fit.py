"""The fit finds the bandwidths that are there to find."""

import random

import pytest

from cdp_torchrec.planning.measured.fit import UNFITTED, Point, error, fit, fit_by_others
from cdp_torchrec.planning.measured.sharded_tables import Piece

CONSTANTS = ("memory", "network")


def point(sharding_type: str, piece: Piece, parts: dict[str, float], measured_ms: float) -> Point:
    return Point("t_item", sharding_type, "fused", ("plan",), piece, measured_ms, parts)


def machine(
    slowdown: dict[str, float], fixed_ms: dict[Piece, float], *, noise: float = 0.0
) -> list[Point]:
    """What such a machine would show of tables of many sizes."""
    draw = random.Random(0)
    points = []
    for kind in ("table_wise", "row_wise", "data_parallel"):
        for size in (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0):
            for piece in ("lookup", "output", "gradient"):
                parts = {
                    "lookup": {"memory": size, "network": 0.0},
                    "output": {"memory": 0.0, "network": size},
                    "gradient": {"memory": 0.3 * size, "network": size},
                }[piece]
                ms = fixed_ms[piece] + sum(slowdown[name] * part for name, part in parts.items())
                points.append(point(kind, piece, parts, ms * draw.uniform(1 - noise, 1 + noise)))
    return points


def test_known_bandwidths_and_fixed_costs_are_recovered() -> None:
    slowdown = {"memory": 4.0, "network": 0.25}
    fixed: dict[Piece, float] = {"lookup": 0.5, "output": 2.0, "gradient": 1.0}
    found = fit(machine(slowdown, fixed), CONSTANTS)
    assert found.slowdown == pytest.approx(slowdown, rel=0.01)
    assert found.fixed_ms == pytest.approx(fixed, rel=0.01)


def test_noise_and_one_wild_measurement_move_the_bandwidths_little() -> None:
    slowdown = {"memory": 4.0, "network": 0.25}
    points = machine(slowdown, {"lookup": 0.5, "output": 2.0, "gradient": 1.0}, noise=0.2)
    wild = point("table_wise", "output", {"memory": 0.0, "network": 100.0}, 10_000.0)
    assert fit([*points, wild], CONSTANTS).slowdown == pytest.approx(slowdown, rel=0.15)


def test_a_network_that_only_shows_its_latency_keeps_its_bandwidth() -> None:
    points = [
        point(kind, "output", {"network": size}, 5.0)
        for kind in ("table_wise", "row_wise")
        for size in (0.001, 0.01, 0.1)
    ]
    found = fit(points, ("network",))
    assert found.slowdown == {}
    assert found.fixed_ms["output"] == pytest.approx(5, rel=0.01)


def test_a_part_that_no_constant_divides_is_left_as_it_is() -> None:
    points = [
        point("table_wise", "lookup", {"memory": size, "other": 2.0}, 2.0 + 3.0 * size + 0.01)
        for size in (1.0, 5.0, 10.0, 50.0)
    ]
    assert fit(points, ("memory",)).slowdown["memory"] == pytest.approx(3, rel=0.05)


def test_a_sharding_type_is_judged_by_a_fit_that_has_not_seen_it() -> None:
    points = machine(
        {"memory": 2.0, "network": 2.0}, {"lookup": 0.1, "output": 0.1, "gradient": 0.1}
    )
    odd = [
        point(p.sharding_type, p.piece, dict(p.parts_ms), 10 * p.measured_ms)
        if p.sharding_type == "row_wise"
        else p
        for p in points
    ]
    others = fit_by_others(odd, CONSTANTS)
    assert others["row_wise"].slowdown["network"] == pytest.approx(2, rel=0.05)
    assert others["table_wise"].slowdown["network"] > 3
    only = [p for p in points if p.sharding_type == "row_wise"]
    assert fit_by_others(only, CONSTANTS) == {}


def test_the_error_is_a_median_factor_and_a_share_of_the_time() -> None:
    points = [point("row_wise", "lookup", {"memory": 1.0}, ms) for ms in (1.0, 2.0, 0.25)]
    found = error([UNFITTED.estimate(p, fixed=False) for p in points], points)
    assert found.factor == 2
    assert found.missed == pytest.approx((0 + 1 + 0.75) / 3.25)
