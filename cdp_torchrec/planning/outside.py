"""What is to be sharded and computed of a model from outside, which needs no dataset."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from cdp_torchrec.config import ConfigError
from cdp_torchrec.distributed.optimizers import needs_dense_gradients
from cdp_torchrec.distributed.plans.problem import PlanProblem
from cdp_torchrec.distributed.plans.tables import EmbeddingTable, find_tables, table_parameters
from cdp_torchrec.planning.case import PlanCase
from cdp_torchrec.planning.described import DescribedModel
from cdp_torchrec.planning.outside_config import DescribedModelConfig, OutsideConfig

_OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class OutsideModel:
    """A model, and how to run it."""

    module: nn.Module
    """Its tables on the meta device."""
    inputs: Callable[[int], Sequence[Any]] | None
    """From a batch size to the arguments of its forward; None if nobody has said."""


@dataclass(frozen=True)
class OutsideWorkload:
    """What the ranks have to hold and to compute."""

    name: str
    make: Callable[[], OutsideModel]
    """A new one each time, because an optimizer marks the tables that it is fused into."""
    batch_size: int
    """Impressions per rank and step."""
    pooling_factors: Mapping[str, float]
    """Mean number of ids per impression, by feature."""
    pooling_source: str
    """Where the pooling factors come from, in words."""

    @cached_property
    def tables(self) -> list[EmbeddingTable]:
        """All tables, by name."""
        return find_tables(self.make().module, from_outside=True)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What distinguishes it from other models."""
        return {"outside": repr(self.make().module), "tables": repr(self.tables)}

    def problem(self, case: PlanCase) -> PlanProblem:
        """What a case needs a plan for."""
        module = self.make().module
        kind = case.optimizer.kind
        if not needs_dense_gradients(case.optimizer, torch.device(case.hardware.device)):
            tables = table_parameters(module)
            apply_optimizer_in_backward(_OPTIMIZERS[kind], tables, {"lr": 1.0})
        problem = case.problem(module, self.batch_size, self.pooling_factors)
        return replace(problem, from_outside=True)


def read_outside(config: OutsideConfig) -> OutsideWorkload:
    """The workload of a configuration.

    Raises:
        ConfigError: there is no such function, it returns no model, or no tables are found in it;
            pooling factors of features that do not exist.
    """
    if config.described is not None:
        described = config.described
        name, declared = described.name, _declared(described)
        make = lambda: _described(described)  # noqa: E731
    else:
        assert config.from_torchrec is not None
        name, declared = config.from_torchrec, {}
        make = _loader(config.from_torchrec)
    tables = find_tables(make().module, from_outside=True)
    _check_tables(tables, name)
    features = [feature for table in tables for feature in table.features]
    own = config.planning.pooling_factors
    if unknown := [feature for feature in own if feature not in features]:
        raise ConfigError.of(
            f"planning.pooling_factors.{feature}: no table has this feature; there are "
            f"{', '.join(features)}"
            for feature in unknown
        )
    return OutsideWorkload(
        name=name,
        make=make,
        batch_size=config.planning.batch_size,
        pooling_factors={f: own.get(f, declared.get(f, 1.0)) for f in features},
        pooling_source="declared" if declared or own else "1, since none are declared",
    )


def _declared(described: DescribedModelConfig) -> dict[str, float]:
    return {
        feature: factor
        for table in described.tables
        for feature, factor in described.features_of(table).items()
    }


def _described(config: DescribedModelConfig) -> OutsideModel:
    def inputs(batch_size: int) -> Sequence[Any]:
        return torch.zeros(batch_size, config.dense_features, device="meta"), None

    return OutsideModel(DescribedModel(config), inputs)


def _loader(name: str) -> Callable[[], OutsideModel]:
    """What calls the function of a name."""
    key = f"from_torchrec = '{name}'"
    module_name, function_name = name.split(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{key}: cannot be found: {error}") from error
    except Exception as error:  # as in the function
        raise ConfigError(f"{key}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)

    def load() -> OutsideModel:
        try:
            made = function()
        # Whatever the function does wrong is told in one line.
        except Exception as error:
            raise ConfigError(f"{key}: {type(error).__name__}: {error}") from error
        if isinstance(made, nn.Module):
            return OutsideModel(made, None)
        match made:
            case (nn.Module() as module, inputs) if callable(inputs):
                return OutsideModel(module, inputs)
        raise ConfigError(
            f"{key}: returns {type(made).__name__}; expected a torch.nn.Module, or a pair of one "
            "and of a function from a batch size to the arguments of its forward"
        )

    return load


def _check_tables(tables: Sequence[EmbeddingTable], name: str) -> None:
    if not tables:
        raise ConfigError(
            f"{name}: no tables found; expected a model that holds TorchRec's "
            "EmbeddingBagCollection or EmbeddingCollection"
        )
    names = [table.name for table in tables]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(
            f"{name}: {', '.join(twice)}: tables of one name in several collections, which plans "
            "cannot tell apart"
        )
