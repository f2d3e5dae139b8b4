"""A model from outside, without a dataset: described by its tables, or made by a function."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cdp_torchrec.config import Config, ConfigConflicts, ConfigError, only_if
from cdp_torchrec.config.keys import key_tree
from cdp_torchrec.config.layers import is_layer, is_override, read_layers
from cdp_torchrec.config.sections import asks_help
from cdp_torchrec.data.config import NumRows
from cdp_torchrec.distributed.plans.config import ShardingConfig
from cdp_torchrec.planning.config import NumIds, PlanningConfig, PlanningExperimentConfig

_FLAG = "--from-torchrec"
_SOURCES = ("described", "from_torchrec")


class DescribedTableConfig(Config):
    """One table."""

    rows: NumRows
    """Number of embeddings."""
    width: PositiveInt | None = None
    """Columns; without it, described.embedding_dim."""
    features: Mapping[str, NumIds] = {}
    """Mean number of ids per impression of each feature that is looked up in it, summed in one
    bag; without any, one feature of the table's name with one id."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Number format of the weights. TorchRec counts the optimizer's state in the same format."""


class DescribedModelConfig(Config):
    """Tables, dense features, how they meet, and the layers above, as in a DLRM."""

    name: str = "described model"
    """What the output calls it."""
    embedding_dim: PositiveInt = 128
    """Width of the tables that do not say theirs."""
    tables: Annotated[Mapping[str, DescribedTableConfig], Field(min_length=1)]
    """By name."""
    dense_features: NonNegativeInt = 0
    """Numbers per impression."""
    dense_arch_layer_sizes: tuple[PositiveInt, ...] = ()
    """Layers that the dense features go through."""
    interaction: Literal["dot", "dcn", "concatenation"] = "concatenation"
    """dot: products of all pairs of features, which need one width; dcn: low-rank cross layers over
    all features side by side; concatenation: side by side."""
    cross_layers: Annotated[PositiveInt, only_if(interaction="dcn")] = 3
    """Number of cross layers."""
    cross_rank: Annotated[PositiveInt, only_if(interaction="dcn")] = 512
    """Rank of each."""
    over_arch_layer_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (512, 256, 1)
    """Layers above the interaction; the last has one output for each task."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = [*self._unequal_features()]
        if bool(self.dense_features) != bool(self.dense_arch_layer_sizes):
            conflicts.append(
                ("dense_arch_layer_sizes", "goes with dense_features: set both, or none")
            )
        if self.interaction == "dot":
            widths = {table.width or self.embedding_dim for table in self.tables.values()}
            widths |= set(self.dense_arch_layer_sizes[-1:])
            if len(widths) > 1 or not self.dense_features:
                conflicts.append(
                    (
                        "interaction",
                        "dot needs dense features whose last layer is as wide as all tables; found "
                        f"widths {', '.join(map(str, sorted(widths)))}",
                    )
                )
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self

    def _unequal_features(self) -> Iterator[tuple[str, str]]:
        """Features of several tables, of which each has its own number of ids."""
        seen: dict[str, tuple[str, float]] = {}
        for table in self.tables:
            for feature, factor in self.features_of(table).items():
                first, expected = seen.setdefault(feature, (table, factor))
                if factor != expected:
                    yield (
                        f"tables.{table}",
                        f"feature '{feature}' has {factor:g} ids here and {expected:g} in {first}: "
                        "it is one list of ids, that both look up",
                    )

    def features_of(self, table: str) -> Mapping[str, float]:
        """Mean number of ids per impression by feature."""
        return self.tables[table].features or {table: 1.0}


class OutsideSparseConfig(Config):
    """Optimizer of the tables."""

    kind: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"] = "adam"
    """What is kept beside each weight: two numbers, one, one for each row, nothing."""


class OutsideOptimizerConfig(Config):
    """Optimizers."""

    sparse: OutsideSparseConfig = OutsideSparseConfig()
    """Of the tables; that of the dense part is taken for Adam."""


class OutsideConfig(Config):
    """A model from outside, and what to explore before it is run."""

    described: DescribedModelConfig | None = None
    """Its tables and layers."""
    from_torchrec: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """module:function that makes it, also as --from-torchrec module:function. The function takes
    nothing and returns a module that holds EmbeddingBagCollections or EmbeddingCollections, on the
    meta device; or that module and a function from a batch size to the arguments of its forward,
    with which the dense part is counted operation by operation instead of by its linear layers."""
    optimizer: OutsideOptimizerConfig = OutsideOptimizerConfig()
    """Of the tables."""
    sharding: ShardingConfig = ShardingConfig()
    """Where the tables live."""
    planning: PlanningConfig = PlanningConfig()
    """Plans to explore; its rows are those of the description."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        conflicts = []
        if (self.described is None) == (self.from_torchrec is None):
            conflicts.append(("described", "expected this or from_torchrec, and not both"))
        if self.planning.rows:
            conflicts.append(
                ("planning.rows", "the description or the function says how many rows there are")
            )
        if conflicts:
            raise ConfigConflicts(conflicts)
        return self


def without_flag(arguments: Sequence[str]) -> list[str]:
    """The arguments with --from-torchrec NAME as the key that it stands for.

    Raises:
        ConfigError: the name is missing.
    """
    words: list[str] = []
    for word in arguments:
        if words and words[-1] == _FLAG:
            words[-1] = f"from_torchrec={word}"
        else:
            words.append(word.replace(f"{_FLAG}=", "from_torchrec=", 1))
    if words and words[-1] == _FLAG:
        raise ConfigError(f"{_FLAG}: expected module:function behind it, such as my_ranker:make")
    return words


def planned_config(
    arguments: Sequence[str],
) -> type[PlanningExperimentConfig] | type[OutsideConfig]:
    """What a command line configures, or asks help on: a training, or a model from outside."""
    settings = [word for word in arguments if is_layer(word) or is_override(word)]
    layers, _ = read_layers(settings, key_tree(OutsideConfig), defaults={})
    named = set(layers.data)
    if asks_help(arguments):
        named |= {word.partition(".")[0] for word in arguments}
    return PlanningExperimentConfig if named.isdisjoint(_SOURCES) else OutsideConfig
