"""One clear error for each mistake."""

from pathlib import Path

import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.hardware import SKUS, hardware_names, load_hardware
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.planning.explore import explore


def test_all_named_hardware_is_plausible() -> None:
    for name in hardware_names():
        assert make_topology(load_hardware(name), 2).world_size == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("device_memory_gb = 24", "", "device_memory_gb.*required with device = 'cuda'"),
        ("inter_node_gb_s = 2.5", "", "inter_node_gb_s: required key is missing"),
        ("device_memory_gb = 24", "device_memory_gb = 24000", "in the unit of its name"),
        ("intra_node_gb_s = 10", "intra_node_gb_s = -10", "intra_node_gb_s"),
        ("device_bandwidth_gb_s = 600", "device_bandwidth_gb_s = 6e11", "in the unit of its name"),
        ("matmul_tflops = 20", 'matmul_tflops = "fast"', "matmul_tflops"),
    ],
)
def test_a_hardware_file_with_missing_or_absurd_numbers_is_refused(
    old: str, new: str, message: str, tmp_path: Path, load
) -> None:
    text = (SKUS / "a10.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        explore(load(f'planning.hardware=["{path}"]'))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ('planning.hardware=["h900"]', "hardware 'h900': unknown; expected one of a10"),
        ('planning.strategies=["diagonal"]', "planning.strategies"),
        ("planning.world_sizes=[6]", "6 ranks are no whole nodes of 4"),
        ("planning.world_sizes=[4, 4]", "names 4 twice"),
        ("planning.rows.planet=5", "planning.rows.planet: the model has no such table"),
        ("planning.pooling_factors.colour=5.0", "planning.pooling_factors.colour: no lookup"),
    ],
)
def test_a_wrong_key_is_named(argument: str, message: str, load) -> None:
    with pytest.raises(ConfigError, match=message):
        explore(load(argument))


def test_a_log_that_is_only_a_schema_needs_its_pooling_factors(load, tmp_path: Path) -> None:
    config = load("planning.pooling_factors.query_tokens=1.0")
    without = config.planning.model_copy(update={"pooling_factors": {}})
    with pytest.raises(ConfigError, match=r"query_tokens: required(.|\n)*history_item_id_0"):
        explore(config.model_copy(update={"planning": without}))
