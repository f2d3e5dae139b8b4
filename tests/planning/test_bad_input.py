"""One clear error for each mistake."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import SKUS, hardware_names, load_hardware
from cdp_torchrec.distributed.plans.topology import make_topology
from cdp_torchrec.planning import cache
from cdp_torchrec.planning.case import make_cases
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.explore import explore
from cdp_torchrec.planning.infeasible import find_shortage
from cdp_torchrec.planning.workload import Workload

PLANNER = 'planning.strategies=["planner"]'
DYNAMIC = 'sharding.proposers=["greedy", "dynamic_programming"]'
OWN = 'planning.strategies=["constraints"]'


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
        ("planning.world_sizes=[1000000]", "must be an integer >= 1 and <= 16384"),
        ('planning.hardware=["h100", "mine/h100.toml"]', "names h100 twice"),
        ("planning.rows.item=9000000000000000000", "planning.rows.item = .*: must be an integer"),
        ("planning.rows.planet=5", "planning.rows.planet: the model has no such table"),
        ("planning.pooling_factors.item=1e300", "must be a number >= 0 and <= 1000000"),
        ("planning.pooling_factors.colour=5.0", "planning.pooling_factors.colour: no lookup"),
    ],
)
def test_a_wrong_key_is_named(argument: str, message: str, load) -> None:
    with pytest.raises(ConfigError, match=message):
        explore(load(argument))


@pytest.mark.slow
def test_an_exploration_that_ended_in_the_midst_of_a_write_goes_on(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = load(PLANNER, f"planning.cache={tmp_path}")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(cache, "write_plan", full)
        explore(config)
    anew, stored = explore(config), explore(config)
    assert {o.case.name for o in stored.outcomes} == {o.case.name for o in anew.outcomes} != set()


@pytest.mark.parametrize("key", ["output", "cache"])
def test_a_file_is_no_directory_of_plans(key: str, load, tmp_path: Path) -> None:
    (tmp_path / "plans").touch()
    settings = [PLANNER] + [f"planning.cache={tmp_path / 'plans'}"] * (key == "cache")
    with pytest.raises(ConfigError, match=rf"planning\.{key} = '.*plans' is a file"):
        explore(load(*settings))


@pytest.mark.parametrize("key", ["output", "cache"])
def test_plans_that_could_not_be_written_are_not_made(key: str, load) -> None:
    config = load(PLANNER)
    planning = config.planning.model_copy(update={key: Path("/proc/plans")})
    message = rf"planning\.{key} = '/proc/plans': /proc cannot hold"
    with pytest.raises(ConfigError, match=message):
        explore(config.model_copy(update={"planning": planning}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [PLANNER, 'sharding.tables.item.types=["row_wise"]'],
            r"sharding\.tables: none of .* reads it",
        ),
        (
            [PLANNER, "sharding.strategy=row_wise"],
            r"sharding\.strategy: none of .*'planner'.* reads it",
        ),
        ([PLANNER, "sharding.plan=plan.json"], r"sharding\.plan: none of .* add 'constraints'"),
        (
            [PLANNER, "planning.compare=['a10-4-planner', 'a10-4-planner']"],
            r"planning\.compare: 'a10-4-planner' stands twice",
        ),
        ([PLANNER, "sharding.hardware=a10"], r"sharding\.hardware = 'a10': .*planning\.hardware"),
        ([OWN, 'sharding.tables.planet.types=["row_wise"]'], r"tables\.planet: the model has no"),
        (
            [OWN, "sharding.tables.item.types=[]"],
            r"types = \[\]: must be a list .*at least 1",
        ),
        ([OWN, "sharding.tables.item.kernels=[]"], r"kernels = \[\]: must be a list .*at least 1"),
        ([OWN, "sharding.tables.item.column_width=3"], r"column_width = 3: expected a multiple"),
        (
            [OWN, 'sharding.tables.item={types=["row_wise"],column_width=8}'],
            r"item\.column_width: nothing splits row_wise by columns",
        ),
        (
            [OWN, 'sharding.tables.hour.kernels=["fused_uvm"]'],
            r"hour\.kernels: the table is data_parallel",
        ),
        ([OWN, "sharding.plan=nowhere.json"], r"nowhere\.json' cannot be read"),
        (
            [OWN, "sharding.plan=plan.json", "sharding.search=torchrec"],
            r"sharding\.search: nothing is searched",
        ),
        ([PLANNER, "sharding.prefetch=true"], r"sharding\.prefetch = true: no plan that is asked"),
        (
            [PLANNER, 'planning.hardware=["cpu"]', "sharding.reserved_share=0.5"],
            r"sharding\.reserved_share: nothing of a host's memory is reserved",
        ),
        (
            [PLANNER, 'planning.hardware=["cpu"]', DYNAMIC],
            r"sharding\.proposers: dynamic_programming divides the memory of GPUs",
        ),
    ],
)
def test_a_setting_that_would_change_nothing_or_cannot_be_stops_before_any_work(
    arguments: list[str], message: str, load, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        explore(load(*arguments))
    assert not (tmp_path / "plans").exists()


def test_batches_beyond_the_memory_of_a_gpu_are_one_message(load, workload: Workload) -> None:
    (case,) = make_cases(load(PLANNER), {"a10": load_hardware("a10")})
    problem = replace(workload, batch_size=10**8).problem(case)
    # 20 copies of each id of 8 bytes; an empty bag counts as one id.
    ids = sum(max(1.0, factor) for factor in workload.pooling_factors.values())
    with pytest.raises(ConfigError, match="no memory for tables on any of 4 ranks") as error:
        estimate(problem)
    largest = int(str(error.value).split("fewer than ")[1].split(" ")[0].replace(",", ""))
    assert largest == pytest.approx(0.85 * 24e9 / (20 * 8 * ids), rel=0.01)
    with pytest.raises(ConfigError, match="no memory for tables"):
        find_shortage(problem)


@pytest.mark.slow
def test_batches_beyond_the_memory_of_a_host_are_told_as_those_of_a_gpu(
    load, tmp_path: Path
) -> None:
    small = load_hardware("cpu").model_dump(exclude_none=True) | {"host_memory_gb": 2.0}
    (tmp_path / "small.toml").write_text(tomli_w.dumps(small))
    settings = (PLANNER, "planning.batch_size=1000000", "planning.world_sizes=[2]")
    (result,) = explore(load(f'planning.hardware=["{tmp_path}/small.toml"]', *settings)).infeasible
    told = " ".join(result.reason)
    assert "no memory for tables on any of 2 ranks: the batches under way take 7.2 GB" in told
    assert "of 2.0 GB host memory" in told
    assert "reserved_share" not in told
    assert "what helps: fewer than" in told


def test_margin_and_searches_are_settings(load, workload: Workload) -> None:
    (case,) = make_cases(load(PLANNER), {"a10": load_hardware("a10")})
    own = ShardingConfig(reserved_share=0.5, proposers=("greedy_sum",))
    usual = estimate(workload.problem(case))
    found = estimate(workload.problem(replace(case, sharding=own)))
    assert found.margin_bytes == pytest.approx(12e9)
    assert found.num_proposals < usual.num_proposals


def test_a_search_by_the_memory_of_gpus_is_refused_on_cpus(load, workload: Workload) -> None:
    (case,) = make_cases(load(PLANNER, DYNAMIC), {"cpu": load_hardware("cpu")})
    with pytest.raises(ConfigError, match="the ranks compute on the CPU"):
        estimate(workload.problem(case))


def test_a_log_that_is_only_a_schema_needs_its_pooling_factors(load, tmp_path: Path) -> None:
    config = load("planning.pooling_factors.query_tokens=1.0")
    without = config.planning.model_copy(update={"pooling_factors": {}})
    with pytest.raises(ConfigError, match=r"query_tokens: required(.|\n)*history_item_id_0"):
        explore(config.model_copy(update={"planning": without}))
