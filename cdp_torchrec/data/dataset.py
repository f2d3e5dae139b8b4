"""A dataset directory opened for one rank: layout, and batches of every split."""

from dataclasses import dataclass

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.assemble import BatchAssembler
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history_lookup import HistoryLookup
from cdp_torchrec.data.history_store import HistoryStore
from cdp_torchrec.data.layout import FeatureLayout, build_layout
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from cdp_torchrec.data.requests import ImpressionOrder, RequestFiles
from cdp_torchrec.data.schema import Schema, load_schema


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset as batches of one rank."""

    schema: Schema
    layout: FeatureLayout
    train: TrainBatches
    validation: EvaluationBatches | None
    """The latest requests of the training split, if any are held out."""
    test: EvaluationBatches
    steps_per_epoch: int
    """Global batches in one pass over the training impressions."""


def make_if_missing(config: DataConfig) -> None:
    """Make the synthetic log that the configuration describes, if nothing is at its place."""
    if config.synthetic is not None and not config.dir.exists():
        # The preparation needs DuckDB, which no other rank and no later run has to load.
        from cdp_torchrec.data.synthetic import make_synthetic

        make_synthetic(config.synthetic, config.dir)


def read_schema(config: DataConfig) -> Schema:
    """The schema without the excluded features.

    Raises:
        ConfigError: an excluded feature is unknown or needed.
        DatasetError: there is no readable dataset.
    """
    try:
        return load_schema(config.dir).without(config.exclude_features)
    except KeyError as error:
        raise ConfigError.of([f"data.exclude_features: {error.args[0]}"]) from error


def open_dataset(
    config: DataConfig,
    *,
    history: HistoryLookup,
    history_counts: bool,
    global_batch_size: int,
    share: Share,
    seed: int,
) -> Dataset:
    """Open all splits.

    Args:
        config: which dataset, and how to read it.
        history: forms of the history that the model reads.
        history_counts: whether the tower learns the counts of the gated history.
        global_batch_size: impressions per step over all ranks.
        share: this rank's share of them.
        seed: seed of the order of training impressions and of the training noise.

    Raises:
        ConfigError: the configuration does not fit the dataset.
        DatasetError: the dataset is incomplete or damaged.
    """
    schema = read_schema(config)
    layout = build_layout(
        config.dir,
        schema,
        vocabulary=config.vocabulary,
        history=history,
        count_segments=config.history.count_segments if history_counts else None,
    )
    gate = schema.history.category_entity
    assembler = BatchAssembler(
        layout,
        HistoryStore(
            config.dir / "history",
            schema.history,
            num_categories=schema.entities[gate].num_ids if gate else 0,
        ),
        batch_size=global_batch_size // share.world_size,
        max_history_length=config.history.max_length,
        seed=seed,
    )

    def evaluation_batches(files: RequestFiles) -> EvaluationBatches:
        order = ImpressionOrder(files, seed=None)
        return EvaluationBatches(order, assembler, global_batch_size=global_batch_size, share=share)

    requests = schema.splits["train"].requests
    held_out = int(config.validation_fraction * requests)
    first = requests - held_out
    train = RequestFiles(config.dir, schema, "train", stop=first)
    if global_batch_size > train.num_impressions:
        raise ConfigError.of(
            [
                f"trainer.global_batch_size = {global_batch_size}: exceeds the "
                f"{train.num_impressions} training impressions"
            ]
        )
    validation = RequestFiles(config.dir, schema, "train", first=first) if held_out else None
    return Dataset(
        schema=schema,
        layout=layout,
        train=TrainBatches(
            ImpressionOrder(train, seed=seed),
            assembler,
            global_batch_size=global_batch_size,
            share=share,
        ),
        validation=evaluation_batches(validation) if validation else None,
        test=evaluation_batches(RequestFiles(config.dir, schema, "test")),
        steps_per_epoch=train.num_impressions // global_batch_size,
    )
