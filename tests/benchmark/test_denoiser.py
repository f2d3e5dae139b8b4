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
    # 4,000 candidates, 3 steps, layers 16 -> 64 -> 16; a product of n x m costs 2 n m.
    operations = 4000 * 3 * 2 * (2 * 16 * 64)
    assert row.bound_by == "operations"
    assert row.floor_us == pytest.approx(1e-3 * operations / table.ceilings.gflops)
    forms = ["eager"]
    if device == "cuda":
        forms += ["graph", "fused"]
    assert list(row.us) == forms and all(us > 0 for us in row.us.values())
    assert as_json(table)["rows"][0]["candidates"] == 2
    assert as_markdown(table).count("operations") == 1 + (table.rows[0].bound_by == "operations")
