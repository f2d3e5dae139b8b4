"""The benchmark of the reverse process: its floor is arithmetic, its forms are what runs."""

import pytest

from cdp_torchrec.benchmark.denoiser.config import DenoiserSettings
from cdp_torchrec.benchmark.denoiser.table import as_json, as_markdown, measure_chains
from cdp_torchrec.diffusion.config import DenoiserConfig
from tests.runs import DEVICES, one_rank_on


@pytest.mark.parametrize("device", DEVICES)
def test_each_form_has_a_time_and_a_share_of_the_floor(device: str) -> None:
    settings = DenoiserSettings(
        candidates=(2, 4000),
        num_inference_steps=(3,),
        denoiser=DenoiserConfig(num_hidden_layers=1),
        rounds=1,
    )
    with one_rank_on(device) as here:
        table = measure_chains(settings, here)
    _, row = table.rows
    # 4,000 candidates, 3 steps, layers 16 -> 64 -> 16; a product of n x m costs 2 n m. Weights and
    # the last layer's bias, a modulation of 64 by step, and for each state, modulation and result.
    operations = 4000 * 3 * 2 * (2 * 16 * 64)
    traffic = 4 * (2 * 16 * 64 + 16 + 3 * 64 + 4000 * (16 + 64 + 16))
    floors = {
        "operations": 1e-3 * operations / table.ceilings.gflops,
        "bytes": 1e-3 * traffic / table.ceilings.gb_per_s,
    }
    assert row.floor_us == pytest.approx(max(floors.values()))
    assert row.floor_us == pytest.approx(floors[row.bound_by])
    forms = ["eager"]
    if device == "cuda":
        forms += ["fused", "eager graph", "fused graph"]
    assert list(row.us) == forms and all(us > 0 for us in row.us.values())
    assert as_json(table)["rows"][0]["candidates"] == 2
    assert as_markdown(table).count("operations") == len(
        [row for row in table.rows if row.bound_by == "operations"]
    )
