"""Plans as files: what is written comes back, and what does not fit is refused with a reason."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torchrec.distributed.types import ShardingPlan

from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.data.schema import DatasetError
from cdp_torchrec.distributed.plans.config import TypeName
from cdp_torchrec.distributed.plans.file import dump_plan, read_plan, write_plan
from cdp_torchrec.distributed.plans.job import plan_job
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.search import choose_plan
from cdp_torchrec.distributed.rank_zero import from_rank_zero
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from tests.distributed.plans.problems import ADAGRAD, POOLED, Tables, on_nodes_of, problem
from tests.distributed.spawn import run_ranks
from tests.paths import CONFIGS
from tests.runs import losses

STRATEGIES = ("auto", *get_args(TypeName))
TOO_LARGE = problem(Tables({**POOLED, "user": 5_000_000_000}))

Plan = dict[str, Any]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("hardware", "world_size"), [("cpu", 1), ("cpu", 2), ("cpu", 4), ("h100", 4), ("h100", 16)]
)
def test_a_plan_comes_back_as_it_was(
    hardware: str, world_size: int, strategy: str, tmp_path: Path
) -> None:
    posed = problem(world_size=world_size, hardware=hardware, strategy=strategy)
    plan = choose_plan(posed)
    write_plan(tmp_path / "plan.json", plan, posed)
    back = read_plan(tmp_path / "plan.json", posed)
    assert back.plan == plan.plan
    assert dump_plan(back, posed) == (tmp_path / "plan.json").read_text()


def test_the_plan_of_a_file_is_chosen_instead_of_a_search(tmp_path: Path) -> None:
    posed = problem(strategy="row_wise")
    write_plan(tmp_path / "plan.json", choose_plan(posed), posed)
    given = choose_plan(problem(plan=tmp_path / "plan.json"))
    assert given.plan == choose_plan(posed).plan != choose_plan(problem()).plan
    with pytest.raises(ConfigError, match="prefetch = true: fills caches on GPUs"):
        choose_plan(problem(plan=tmp_path / "plan.json", prefetch=True))


def test_the_cache_of_a_table_in_host_memory_comes_back(tmp_path: Path) -> None:
    caching = {"kernels": ("fused_uvm_caching",), "cache_load_factor": 0.1}
    posed = problem(world_size=4, hardware="h100", tables={"user": caching})
    plan = choose_plan(posed)
    write_plan(tmp_path / "plan.json", plan, posed)
    entry = json.loads((tmp_path / "plan.json").read_text())["tables"]["t_user"]
    assert entry["compute_kernel"] == "fused_uvm_caching"
    assert entry["cache_params"] == {"load_factor": 0.1}
    assert read_plan(tmp_path / "plan.json", posed).plan == plan.plan


def test_a_plan_that_the_format_cannot_say_is_not_written() -> None:
    plan = choose_plan(problem())
    table = next(iter(plan.plan["pooled"].values()))  # pyrefly: ignore[missing-attribute]
    table.stochastic_rounding = True
    with pytest.raises(ValueError, match=r"a plan file cannot say .*stochastic_rounding=True"):
        dump_plan(plan, problem())


def test_a_plan_for_gpus_is_the_same_on_as_many_cpu_ranks(tmp_path: Path) -> None:
    gpus, cpus = (
        problem(world_size=4, hardware=hardware, strategy="row_wise")
        for hardware in ("h100", "cpu")
    )
    write_plan(tmp_path / "plan.json", choose_plan(gpus), gpus)
    assert read_plan(tmp_path / "plan.json", cpus).plan == choose_plan(cpus).plan


def edited(posed: PlanProblem, path: Path, edit: Callable[[Plan], Any] | None = None) -> Path:
    plan = json.loads(dump_plan(choose_plan(posed), posed))
    if edit is not None:
        edit(plan)
    path.write_text(json.dumps(plan))
    return path


def shard(plan: Plan, table: str = "t_user", number: int = 0) -> dict[str, Any]:
    return plan["tables"][table]["shards"][number]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda p: shard(p).update(rank=4), "t_user: rank 4 is out of range: the plan has ranks 0"),
        (
            lambda p: shard(p, number=1).update(offsets=[1000, 0], sizes=[1502, 16]),
            "t_user: rows 1,000 to 1,250 are in two shards",
        ),
        (
            lambda p: p["tables"]["t_user"]["shards"].pop(1),
            "t_user: rows 1,251 to 2,501 are in no shard",
        ),
        (
            lambda p: shard(p, number=3).update(sizes=[2000, 16]),
            "t_user: rows up to 5,752 in a table of 5,001 rows",
        ),
        (
            lambda p: [s.update(sizes=[s["sizes"][0], 8]) for s in p["tables"]["t_user"]["shards"]],
            "t_user: columns 8 to 15 are in no shard",
        ),
        (
            lambda p: shard(p).update(rank=1),
            "t_user: row_wise spreads the rows over all ranks in their order, found ranks [1, 1, ",
        ),
        (
            lambda p: p["tables"]["t_user"].update(sharding_type="table_wise"),
            "t_user: table_wise splits the rows into 1 of 5,001, found 4 of 1,251",
        ),
        (
            lambda p: p["tables"]["t_user"].update(sharding_type="data_parallel"),
            "t_user: data_parallel has no shards: every rank holds the table",
        ),
        (lambda p: p["tables"]["t_user"].update(shards=[]), "t_user: row_wise without shards"),
        (
            lambda p: p["tables"]["t_item"].update(sharding_type="table_row_wise"),
            "t_item: table_row_wise does not exist for tables that sequences read; use row_wise",
        ),
        (lambda p: p["tables"].pop("t_hour"), "tables of the model without a plan: t_hour"),
        (
            lambda p: p["tables"].update(t_other=p["tables"]["t_hour"]),
            "tables that the model does not have: t_other",
        ),
        (
            lambda p: p["tables"]["t_user"].update(compute_kernel="fused_uvm"),
            "t_user: fused_uvm needs a GPU, and the ranks compute on the CPU",
        ),
        (
            lambda p: p["tables"]["t_user"].update(cache_params={"load_factor": 0.1}),
            "t_user: dense has no cache, only fused_uvm_caching has",
        ),
        (
            lambda p: p["tables"]["t_user"].update(cache_params={"load_factor": 1.0}),
            "tables.t_user.cache_params.load_factor = 1.0: Input should be less than 1",
        ),
        (lambda p: p.update(format_version=9), "format_version: found 9, this release reads 1"),
        (lambda p: p.pop("format_version"), "format_version: found none, this release reads 1"),
        (lambda p: p.pop("world_size"), "world_size: required key is missing"),
        (
            lambda p: p["tables"]["t_user"].update(sharding_type="rowwise"),
            "tables.t_user.sharding_type = 'rowwise': Input should be 'table_wise', 'row_wise'",
        ),
    ],
)
def test_a_wrong_plan_is_refused(edit: Callable[[Plan], Any], text: str, tmp_path: Path) -> None:
    posed = problem(world_size=4, strategy="row_wise")
    path = edited(posed, tmp_path / "plan.json", edit)
    with pytest.raises(ConfigError) as error:
        read_plan(path, posed)
    assert text in str(error.value)
    assert str(error.value).startswith(f"sharding.plan = '{path}' ")
    assert len(str(error.value).splitlines()) == 2, "one mistake, one line"


def test_a_plan_for_another_job_names_every_difference(tmp_path: Path) -> None:
    larger = Tables({**POOLED, "user": 6000})
    path = edited(problem(larger, world_size=4, strategy="grid_shard"), tmp_path / "plan.json")
    with pytest.raises(ConfigError) as error:
        read_plan(path, problem(optimizer=ADAGRAD))
    text = str(error.value)
    assert "world_size: 4 in the plan, 2 in this job" in text
    assert "local_world_size: 4 ranks per node in the plan, 2 in this job" in text
    assert "t_user: the plan is for 6,000 rows x 16, the model has 5,001 x 16" in text
    assert "t_user: grid_shard and optimizer.sparse.kind = 'rowwise_adagrad' do not go" in text


def test_ranks_per_node_matter_only_to_what_is_spread_over_a_node(tmp_path: Path) -> None:
    def posed(strategy: str) -> PlanProblem:
        return problem(world_size=16, hardware="h100", strategy=strategy)

    for strategy in ("row_wise", "column_wise", "table_wise"):
        path = edited(posed(strategy), tmp_path / "plan.json")
        read_plan(path, on_nodes_of(posed(strategy), 4))
    path = edited(posed("table_row_wise"), tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="8 ranks per node in the plan, 4 in this job") as error:
        read_plan(path, on_nodes_of(posed("table_row_wise"), 4))
    assert "rows of t_hour, t_user are spread over a node" in str(error.value)


def test_the_rows_of_a_node_stay_in_one_node(tmp_path: Path) -> None:
    def shift(plan: Plan) -> None:
        for number, part in enumerate(plan["tables"]["t_user"]["shards"]):
            part["rank"] = number + 4

    posed = problem(world_size=16, hardware="h100", strategy="table_row_wise")
    path = edited(posed, tmp_path / "plan.json", shift)
    with pytest.raises(ConfigError, match="table_row_wise spreads the rows over a node of 8 ranks"):
        read_plan(path, posed)


def test_columns_are_shards_of_four_floats_or_more(tmp_path: Path) -> None:
    def split(plan: Plan) -> None:
        left, right = plan["tables"]["t_user"]["shards"]
        left["sizes"][1], right["offsets"][1], right["sizes"][1] = 6, 6, 10

    posed = problem(strategy="column_wise")
    path = edited(posed, tmp_path / "plan.json", split)
    with pytest.raises(ConfigError, match="t_user: shards need multiples of 4 columns"):
        read_plan(path, posed)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read:\n  No such file or directory"),
        ("", "cannot be read:\n  no JSON: Expecting value: line 1 column 1"),
        ('{"format_version": 1, ', "no JSON: Expecting property name"),
        ("[1]", "format_version: found none"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content: str | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_plan(path, problem())
    assert text in str(error.value)


def test_a_table_larger_than_all_memory_is_named_with_what_would_help() -> None:
    with pytest.raises(ConfigError) as error:
        choose_plan(TOO_LARGE)
    text = str(error.value)
    assert "the tables take 480.0 GB on each rank, which has 32.0 GB for them" in text
    assert "t_user: 5,000,000,000 rows x 16: 320.0 GB of weights, 640.0 GB of adam state" in text
    assert "at least 31 ranks" in text
    with pytest.raises(ConfigError, match=r"sharding\.strategy = 'row_wise'"):
        choose_plan(problem(Tables({"user": 500_000_000}), world_size=16, strategy="table_wise"))


def test_planning_is_quiet_and_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_plan(problem(strategy="data_parallel"))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    logging.getLogger().warning("Sharding spec not found for a table of someone else")
    assert "someone else" in caplog.records[-1].getMessage()


def config(dataset: Path, run_dir: Path, *overrides: str) -> ExperimentConfig:
    small = ["trainer.global_batch_size=256", "trainer.max_steps=4", "trainer.log_every_steps=1"]
    places = [f"data.dir={dataset}", f"run.dir={run_dir}"]
    return load_config(
        ExperimentConfig, [str(CONFIGS / "quickstart.toml"), *places, *small, *overrides]
    )


def on_two_ranks(dataset: Path, folder: Path) -> dict[str, str]:
    """Train with a plan of the planner and with that plan as a file; then make mistakes."""

    def train(name: str, *overrides: str) -> None:
        settings = config(dataset, folder / name, *overrides)
        train_experiment(settings, torch.device("cpu"), num_bootstrap=2, quiet=True)

    train("planned", "sharding.small_table_rows=20")
    given = f"sharding.plan={folder / 'planned' / 'plan.json'}"
    train("given", given)

    def fail() -> ShardingPlan:
        raise RuntimeError("No available sharding type")

    def refuse() -> ShardingPlan:
        raise DatasetError("the manifest is damaged")

    mistakes: dict[str, Callable[[], Any]] = {
        "other_model": lambda: train("other", given, "model.embedding_dim=8"),
        "missing": lambda: train("other", "sharding.plan=nowhere.json"),
        "other_device": lambda: train("other", "sharding.hardware=h100"),
        "too_large": lambda: plan_job(TOO_LARGE),
        "bug": lambda: from_rank_zero(fail, purpose="make the plan"),
        "damaged": lambda: from_rank_zero(refuse, purpose="make the plan"),
    }
    found = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def two_ranks(
    tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_ranks(2, on_two_ranks, tiny_dataset, folder)


@pytest.mark.slow
@pytest.mark.distributed
def test_training_with_the_plan_of_another_run_is_bit_identical(
    two_ranks: tuple[Path, list[dict[str, str]]],
) -> None:
    folder, _ = two_ranks
    planned, given = (losses(folder / name) for name in ("planned", "given"))
    assert len(planned) == 4
    assert given == planned
    plans = [
        (folder / name).read_text()
        for name in (
            "planned/plan.json",
            "given/plan.json",
            "given/checkpoints/step-00000004/plan.json",
        )
    ]
    assert plans[0] == plans[1] == plans[2]
    types = {table["sharding_type"] for table in json.loads(plans[0])["tables"].values()}
    assert "data_parallel" in types and len(types) > 1, "a plan worth keeping"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_failure_of_rank_zero_ends_all_ranks(
    two_ranks: tuple[Path, list[dict[str, str]]],
) -> None:
    _, (first, second) = two_ranks
    assert "ConfigError: sharding.plan" in first["other_model"]
    assert "t_hour: the plan is for 26 rows x 16, the model has 26 x 8" in first["other_model"]
    assert "'nowhere.json' cannot be read:\n  No such file or directory" in first["missing"]
    assert "has device 'cuda', but the ranks compute on 'cpu'" in first["other_device"]
    assert first.pop("bug") == "RuntimeError: No available sharding type"
    assert second.pop("bug") == (
        "RuntimeError: rank 0 could not make the plan: No available sharding type"
    )
    assert first["damaged"] == "DatasetError: the manifest is damaged"
    assert first == second
    assert len(first) == 5
