"""Estimates of steps beside what others have measured, and what we have."""

from pathlib import Path

import pytest

from cdp_torchrec.config import load_config
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.planning.config import PlanningExperimentConfig
from cdp_torchrec.planning.explore import explore
from tests.paths import CONFIGS
from tests.planning.published import STEPS, estimated, fit_step_ms

# launch/benchmark.py train configs/data/noisy.toml on one H200 (benchmark/README.md).
H200_IMPRESSIONS_PER_S = {
    ("pooled", 1024): 107_000,
    ("pooled", 4096): 448_000,
    ("pooled", 16_384): 1_700_000,
    ("cdp", 1024): 57_100,
    ("cdp", 4096): 217_000,
    ("cdp", 16_384): 951_000,
}
FITTED = load_hardware("a100-40").fixed_cost("step_ms")


@pytest.fixture(scope="module")
def found() -> list[float]:
    """Estimates of all steps, in ms."""
    return [estimated(step).step_ms for step in STEPS]


@pytest.mark.slow
def test_published_steps_lie_within_the_range_of_their_estimates(found: list[float]) -> None:
    for step, ms in zip(STEPS, found, strict=True):
        assert ms / 1.3 < step.ms < 1.3 * ms
    assert load_hardware("a100-40").uncertainty == 1.3


def test_the_fixed_time_of_a_step_is_what_the_published_steps_say(found: list[float]) -> None:
    rest = [ms - FITTED for ms in found]
    assert fit_step_ms(rest, [step.ms for step in STEPS]) == pytest.approx(FITTED, rel=0.02)


@pytest.mark.parametrize("left_out", range(len(STEPS)))
def test_each_published_step_is_predicted_by_the_others(left_out: int, found: list[float]) -> None:
    others = [place for place in range(len(STEPS)) if place != left_out]
    rest = [ms - FITTED for ms in found]
    fixed = fit_step_ms([rest[p] for p in others], [STEPS[p].ms for p in others])
    ms, measured = rest[left_out] + fixed, STEPS[left_out].ms
    assert max(ms / measured, measured / ms) < 1.3


@pytest.mark.slow
@pytest.mark.parametrize(("row", "batch_size"), H200_IMPRESSIONS_PER_S)
def test_steps_on_an_h200_lie_near_their_estimates(
    tiny_dataset: Path, tmp_path: Path, row: str, batch_size: int
) -> None:
    settings = [
        str(CONFIGS / "interest" / f"{row}.toml"),
        f"data.dir={tiny_dataset}",
        "data.history.count_segments=[1, 1, 2, 4, 8, 16]",
        "model.interaction.history_counts=true",
        "optimizer.sparse.kind=rowwise_adagrad",
        'planning.hardware=["h200"]',
        "planning.world_sizes=[1]",
        'planning.strategies=["planner"]',
        f"planning.batch_size={batch_size}",
        f"planning.output={tmp_path}",
    ]
    (found,) = explore(load_config(PlanningExperimentConfig, settings)).feasible
    ms = 1e3 * batch_size / H200_IMPRESSIONS_PER_S[row, batch_size]
    assert found.step_ms / 1.3 < ms < 1.3 * found.step_ms


def test_a_fixed_time_is_found_again() -> None:
    rest = [0.5, 1.0, 4.0]
    assert fit_step_ms(rest, [ms + 3 for ms in rest]) == pytest.approx(3, abs=0.01)
    assert fit_step_ms(rest, rest) == pytest.approx(0, abs=0.01)
