"""A model from outside is planned without a dataset, from its description or its function."""

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from cdp_torchrec.commands.plan_sharding import main
from cdp_torchrec.config import ConfigError, load_config
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.distributed.plans.hardware import load_hardware
from cdp_torchrec.distributed.plans.tables import OPTIMIZER_MARK, find_tables
from cdp_torchrec.planning.cache import ResultCache
from cdp_torchrec.planning.case import InfeasiblePlan, PlanCase, make_cases
from cdp_torchrec.planning.estimator import estimate
from cdp_torchrec.planning.outside import OutsideWorkload, read_outside
from cdp_torchrec.planning.outside_config import OutsideConfig, OutsideSparseConfig
from cdp_torchrec.planning.outside_dense import count_outside
from cdp_torchrec.user_error import UserError
from tests.paths import CONFIGS

MLPERF = str(CONFIGS / "planning" / "mlperf_dlrm.toml")
SMALL = {
    "embedding_dim": 16,
    "tables": {
        "user": {"rows": 100_000},
        "item": {"rows": 50_000, "width": 32, "features": {"seen": 20.0, "shown": 1.0}},
        "query": {"rows": 10_000, "precision": "fp16"},
    },
    "dense_features": 4,
    "dense_arch_layer_sizes": (8, 16),
    "over_arch_layer_sizes": (64, 1),
}


def described(optimizer: str = "sgd", **changes: object) -> OutsideWorkload:
    """The small model with changes."""
    return read_outside(
        OutsideConfig.model_validate(
            {
                "described": SMALL | changes,
                "optimizer": {"sparse": {"kind": optimizer}},
                "planning": {"batch_size": 64},
            }
        )
    )


def small_model() -> tuple[nn.Module, object]:
    """The same dense part by hand, and a table that sequences read."""
    meta = torch.device("meta")

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            bag = EmbeddingBagConfig(
                name="user", num_embeddings=100, embedding_dim=16, feature_names=["user"]
            )
            single = EmbeddingConfig(
                name="item", num_embeddings=50, embedding_dim=16, feature_names=["item"]
            )
            self.bags = EmbeddingBagCollection([bag], device=meta)
            self.singles = EmbeddingCollection([single], device=meta)
            self.layer = nn.Linear(16, 8, device=meta)

        def forward(self, dense: torch.Tensor, ids: object) -> torch.Tensor:
            pooled = self.bags(ids).values() * dense
            behaviours = self.singles(ids)["item"].values()
            return self.layer(pooled).sum() + self.layer(behaviours).sum()

    return Ranker(), lambda batch_size: (torch.zeros(batch_size, 16), None)


def model_alone() -> nn.Module:
    """A function that returns no arguments."""
    model, _ = small_model()
    assert isinstance(model, nn.Module)
    return model


def layers_on_the_cpu() -> tuple[nn.Module, object]:
    """A model whose tables alone are on the meta device."""
    model, inputs = small_model()
    assert isinstance(model, nn.Module)
    model.layer = nn.Linear(16, 8)
    return model, inputs


def wrong_inputs() -> tuple[nn.Module, object]:
    """Arguments that cannot be made."""
    return model_alone(), lambda batch_size: {}["dense"]


def tables_alone() -> nn.Module:
    """A collection itself."""
    table = EmbeddingBagConfig(
        name="user", num_embeddings=100, embedding_dim=16, feature_names=["user"]
    )
    return EmbeddingBagCollection([table], device=torch.device("meta"))


def text_embeddings() -> nn.Module:
    """A dense layer whose name is one that collections have inside."""
    text = nn.ModuleDict({"embeddings": nn.Linear(8, 2, device="meta")})
    return nn.ModuleDict({"tables": tables_alone(), "text": text})


def no_tables() -> nn.Module:
    """A model that holds none."""
    return nn.Linear(2, 2, device="meta")


def number() -> int:
    """No model at all."""
    return 5


def made(function: str, **planning: object) -> OutsideWorkload:
    name = f"tests.planning.test_outside:{function}"
    planning = {"batch_size": 64} | planning
    return read_outside(OutsideConfig.model_validate({"from_torchrec": name, "planning": planning}))


def test_widths_precisions_and_features_are_those_of_the_description() -> None:
    workload = described()
    tables = {table.name: table for table in workload.tables}
    assert [t.embedding_dim for t in tables.values()] == [32, 16, 16]
    assert tables["query"].element_bytes == 2
    assert tables["item"].features == ("seen", "shown")
    assert workload.pooling_factors == {"user": 1.0, "seen": 20.0, "shown": 1.0, "query": 1.0}


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_row"),
    [("sgd", 0), ("adagrad", 64), ("adam", 128), ("rowwise_adagrad", 4)],
)
def test_weights_and_state_are_bytes_of_the_table(optimizer: str, bytes_per_row: int) -> None:
    workload = described(optimizer)
    config = OutsideConfig.model_validate(
        {"described": SMALL, "optimizer": {"sparse": {"kind": optimizer}}}
    )
    (case,) = make_cases(config, {"h100": load_hardware("h100")})
    tables = {t.table.name: t for t in estimate(workload.problem(case)).tables}
    assert sum(s.weight_bytes for s in tables["query"].shards) == 10_000 * 16 * 2
    assert sum(s.optimizer_bytes for s in tables["user"].shards) == 100_000 * bytes_per_row


def test_dense_operations_are_counted_as_they_run() -> None:
    # Forward, and the products for weights and inputs, of 4 -> 8 -> 16 and 96 -> 64 -> 1; the
    # dense features themselves need no gradient. 16 + 16 + 2 x 32 columns are pooled.
    by_hand = 2 * 64 * (3 * (8 * 16 + 112 * 64 + 64) + 2 * 4 * 8)
    assert count_outside(described()).flops == by_hand
    dot = described(tables={"user": {"rows": 9}, "item": {"rows": 9}}, interaction="dot")
    products = 2 * 64 * 3 * 3 * 16  # three vectors with each other
    assert count_outside(dot).flops == pytest.approx(
        2 * 64 * (3 * (8 * 16 + 19 * 64 + 64) + 2 * 4 * 8) + 3 * products
    )


def test_a_model_of_a_function_runs_on_the_meta_device_without_its_lookups() -> None:
    workload = made("small_model", pooling_factors={"item": 5.0})
    cost = count_outside(workload)
    assert cost.num_parameters == 16 * 8 + 8
    assert cost.flops == 2 * 3 * 64 * 16 * 8 * (1 + 5)
    alone = count_outside(made("model_alone"))
    assert alone.flops == 2 * 3 * 64 * 16 * 8, "its linear layer, once for each impression"


def test_only_the_tables_of_a_function_need_to_be_on_the_meta_device() -> None:
    assert count_outside(made("layers_on_the_cpu")) == count_outside(made("small_model"))


@pytest.mark.parametrize(("function", "dense"), [("tables_alone", 0), ("text_embeddings", 18)])
def test_collections_are_tables_and_nothing_else_is_whatever_its_name(
    function: str, dense: int
) -> None:
    workload = made(function)
    assert count_outside(workload).num_parameters == dense
    (case,) = make_cases(OutsideConfig(from_torchrec="a:b"), {"h100": load_hardware("h100")})
    parameters = workload.problem(case).model.parameters()
    assert [p.numel() for p in parameters if hasattr(p, OPTIMIZER_MARK)] == [100 * 16]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nowhere", "cannot be found"),
        ("no_tables", "no tables found"),
        ("number", "returns int; expected a torch.nn.Module"),
    ],
)
def test_a_function_without_a_model_to_plan_is_one_message(function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(function)


def test_what_a_function_or_its_file_does_wrong_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"wrong_inputs.*KeyError"):
        count_outside(made("wrong_inputs"))
    (tmp_path / "spoilt_model.py").write_text("undefined_name\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="NameError: name 'undefined_name' is not defined"):
        read_outside(OutsideConfig.model_validate({"from_torchrec": "spoilt_model:make"}))


def test_what_the_dense_part_costs_decides_whether_a_plan_is_known(tmp_path: Path) -> None:
    workload = made("small_model")
    cache = ResultCache(tmp_path, workload)
    optimizer = OutsideSparseConfig()
    case = PlanCase("a10", load_hardware("a10"), 2, "planner", ShardingConfig(), optimizer)
    outcomes = [
        InfeasiblePlan(case, [text], ["more ranks"]) for text in ("layers alone", "as it runs")
    ]
    costs = [count_outside(made(function)) for function in ("model_alone", "small_model")]
    for cost, outcome in zip(costs, outcomes, strict=True):
        assert cache.outcome(case, cost, lambda outcome=outcome: outcome) == outcome
    for cost, outcome in zip(costs, outcomes, strict=True):
        found = cache.outcome(case, cost, lambda: outcomes[0])
        assert isinstance(found, InfeasiblePlan)
        assert found.reason == outcome.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("described.tables.cat_0.width=64", "dot needs dense features .* found widths 64, 128"),
        ("described.dense_features=0", "goes with dense_features"),
        ("planning.rows.cat_0=5", "says how many rows"),
        ("from_torchrec=a:b", "expected this or from_torchrec"),
        ("described.tables.cat_0.row=5", "unknown key"),
        (
            "described.tables={a={rows=5, features={x=2}}, b={rows=9, features={x=3}}}",
            r"tables\.b = .*: feature 'x' has 3 ids here and 2 in a",
        ),
    ],
)
def test_a_description_that_cannot_be_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(OutsideConfig, [MLPERF, "described.interaction=dot", change])


def test_one_command_plans_a_model_from_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_ranker.py").write_text(
        textwrap.dedent(
            """
            from tests.planning.test_outside import small_model as make
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    main(["--help", "from_torchrec"])
    assert "module:function that makes it" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--from-torchrec: expected module:function behind it"):
        main(["planning.world_sizes=[2]", "--from-torchrec"])
    main(["--from-torchrec", "own_ranker:make", "planning.world_sizes=[2]"])
    text = capsys.readouterr().out
    assert text.startswith("own_ranker:make: 2 tables, 2,400 sparse parameters")
    assert "h100-2-planner" in text
    assert (tmp_path / "plans" / "h100-2-planner.json").exists()


def test_settings_call_tables_from_outside_by_their_whole_names() -> None:
    """Ours are t_user, t_item; a prefix that somebody else's have is part of the name."""
    collection = EmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                name=name, num_embeddings=100, embedding_dim=16, feature_names=[f"f_{name}"]
            )
            for name in ("7", "t_7")
        ],
        device=torch.device("meta"),
    )
    tables = find_tables(collection, from_outside=True)
    assert [table.entity for table in tables] == ["7", "t_7"]


def test_a_command_none_of_whose_plans_is_possible_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layer = tmp_path / "large.toml"
    layer.write_text(
        "[described]\nembedding_dim = 64\n[described.tables.user]\nrows = 4_000_000_000\n"
        "[planning]\nworld_sizes = [2]\n"
    )
    arguments = [str(layer), 'planning.hardware=["a10"]', "optimizer.sparse.kind=adam"]
    with pytest.raises(UserError, match="none of 1 plans is possible; why stands above"):
        main(arguments)
    assert "a10-2-planner" in capsys.readouterr().out
    assert (tmp_path / "plans" / "plans.json").exists()
