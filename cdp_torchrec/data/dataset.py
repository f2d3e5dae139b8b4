"""A dataset directory opened for one rank: layout, and batches of every split."""

import json
import logging
from dataclasses import dataclass

from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.history.lookup import HistoryLookup
from cdp_torchrec.data.layout import FeatureLayout
from cdp_torchrec.data.loader import EvaluationBatches, Share, TrainBatches
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.requests import ImpressionOrder
from cdp_torchrec.data.schema import Schema, load_schema
from cdp_torchrec.data.synthetic.config import SOURCE, SyntheticConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset as batches of one rank."""

    reader: DatasetReader
    """Everything else about it."""
    layout: FeatureLayout
    train: TrainBatches
    validation: EvaluationBatches | None
    """The latest requests of the training split, if any are held out."""
    test: EvaluationBatches
    steps_per_epoch: int
    """Global batches in one pass over the training impressions."""

    @property
    def sources(self) -> list[TrainBatches | EvaluationBatches]:
        """The batches of all splits."""
        return [self.train, *([self.validation] if self.validation else []), self.test]

    @property
    def schema(self) -> Schema:
        """Features, entities and history, without the excluded features."""
        return self.reader.schema


def make_if_missing(config: DataConfig) -> None:
    """Make the synthetic log that the configuration describes, if nothing is at its place.

    Another log that is there stays, and a warning says what is different.

    Raises:
        DatasetError: what is there is no dataset.
    """
    if config.synthetic is None:
        return
    if not config.dir.exists():
        # The preparation needs DuckDB, which no other rank and no later run has to load.
        from cdp_torchrec.data.synthetic.dataset import make_synthetic

        make_synthetic(config.synthetic, config.dir)
        return
    differences = _differences(config.synthetic, load_schema(config.dir))
    if differences:
        logger.warning(
            "data.synthetic is ignored: %s holds another log (%s); name another data.dir to make "
            "this one",
            config.dir,
            differences,
        )


def _differences(wanted: SyntheticConfig, schema: Schema) -> str:
    if not schema.source.startswith(SOURCE):
        return schema.name
    there = json.loads(schema.source.removeprefix(SOURCE))
    pairs = ((key, there.get(key), value) for key, value in wanted.model_dump().items())
    return ", ".join(f"{key} = {old}, not {new}" for key, old, new in pairs if old != new)


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
    reader = DatasetReader(config)
    layout = reader.layout(history, history_counts=history_counts)
    assembler = reader.assembler(
        layout, batch_size=global_batch_size // share.world_size, seed=seed
    )

    def evaluation_batches(order: ImpressionOrder) -> EvaluationBatches:
        return EvaluationBatches(order, assembler, global_batch_size=global_batch_size, share=share)

    requests = reader.schema.splits["train"].requests
    held_out = int(config.validation_fraction * requests)
    first = requests - held_out
    train = reader.impressions("train", stop=first, seed=seed, softened=True)
    if global_batch_size > train.num_impressions:
        raise ConfigError.of(
            [
                f"trainer.global_batch_size = {global_batch_size}: exceeds the "
                f"{train.num_impressions} training impressions"
            ]
        )
    validation = reader.impressions("train", first=first) if held_out else None
    return Dataset(
        reader=reader,
        layout=layout,
        train=TrainBatches(train, assembler, global_batch_size=global_batch_size, share=share),
        validation=evaluation_batches(validation) if validation else None,
        test=evaluation_batches(reader.impressions("test")),
        steps_per_epoch=train.num_impressions // global_batch_size,
    )
