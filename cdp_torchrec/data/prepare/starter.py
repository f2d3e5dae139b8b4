"""A first configuration for a dataset: every size in it comes from the log, and says why.

The rules of thumb are those of configs/data/: enough steps for a model to learn, no embedding row
for an id with too few clicks, and no id in the tower that the test split hardly knows.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdp_torchrec.data.prepare.dataset_files import row_groups, values
from cdp_torchrec.data.schema import STARTER, Feature, Schema, load_schema
from cdp_torchrec.data.tables.stored_vocabulary import training_counts
from cdp_torchrec.whole_file import write_whole

_CLICKS_PER_ROW = 5
_CLICKS_PER_PASSING_ROW = 25
_LEAST_SHARE = 0.1
_LEAST_COUNT = 20
_REQUESTS_PER_USER = 50
_STEPS_PER_EPOCH = 192
_STEPS = 600
_FEW_IDS = 100
_VALIDATION_CLICKS = 1000
_COUNT_SEGMENTS = (1, 1, 2, 4, 8, 16)
_COUNT_AGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.5, 1.5, 3.5, 7.5, 14.5, 28.5, 90)
_HALF = 0.5


@dataclass(frozen=True)
class LogStatistics:
    """What the layer depends on besides the schema."""

    history_lengths: np.ndarray
    """Behaviours before each training request."""
    training_counts: Mapping[str, np.ndarray]
    """Count of each id by entity, falling."""
    test_codes: Mapping[str, np.ndarray]
    """How often each code occurs in the test split, by feature."""

    def share_known(self, feature: Feature, min_count: int) -> float:
        """Share of the ids of a feature in the test split that occur so often in training.

        Missing ids do not count: they have a row of their own.
        """
        counts = self.training_counts[feature.entity or ""]
        known = int(np.searchsorted(-counts, -min_count, side="right"))
        codes = self.test_codes[feature.name][1:]
        return float(codes[:known].sum() / max(codes.sum(), 1))

    def share_trained(self, entity: str, min_count: int) -> float:
        """Share of the occurrences in training that are of ids with so many of them."""
        counts = self.training_counts[entity]
        return float(counts[counts >= min_count].sum() / max(counts.sum(), 1))

    def count_that_covers(self, entity: str, share: float) -> int:
        """The largest count whose ids have that share of the occurrences in training, from 1."""
        counts = self.training_counts[entity]
        covered = np.cumsum(counts) >= share * counts.sum()
        return max(int(counts[np.argmax(covered)]), 1) if len(counts) else 1


def read_statistics(dataset: Path, schema: Schema) -> LogStatistics:
    """One pass over the columns that matter.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    ids = [f for f in schema.features if f.entity is not None]
    codes = {f.name: np.zeros(schema.entities[f.entity or ""].num_ids + 1, int) for f in ids}
    for table in row_groups(dataset / "test", [f.name for f in ids]):
        for feature in ids:
            np.add.at(codes[feature.name], values(table, feature.name), 1)
    training = row_groups(dataset / "train", ["history_length"])
    lengths = [values(table, "history_length") for table in training]
    return LogStatistics(
        history_lengths=np.concatenate(lengths),
        training_counts={name: training_counts(dataset, schema, name) for name in schema.entities},
        test_codes=codes,
    )


def write_starter(dataset: Path, *, data_dir: Path | None = None) -> Path:
    """Write `<dataset>/starter.toml`, or write it anew.

    Args:
        dataset: dataset directory.
        data_dir: where the dataset will lie, if not there.

    Returns:
        The layer.

    Raises:
        DatasetError: no dataset there, or a file is damaged.
    """
    schema = load_schema(dataset)
    text = starter_layer(schema, read_statistics(dataset, schema), data_dir or dataset)
    path = dataset / STARTER
    write_whole(path, text)
    return path


def next_command(dataset: Path) -> str:
    """The command that trains with the layer of a dataset: its second line."""
    return (dataset / STARTER).read_text().splitlines()[1].lstrip("# ")


def starter_layer(schema: Schema, log: LogStatistics, data_dir: Path) -> str:
    """The layer as text.

    Args:
        schema: of the dataset.
        log: counts of the same.
        data_dir: the dataset directory, as the trainings shall name it.
    """
    train = schema.splits["train"]
    has_history = bool(np.any(log.history_lengths))
    minimum = {name: _min_count(schema, log, name) for name in schema.entities}
    dropped = _dropped(schema, log)
    kept = [f for f in schema.features if f.name not in dropped]
    outside = _outside_the_tower(kept, log, minimum)
    interest = "cdp" if has_history else "none"
    layer = shlex.quote(str(data_dir / STARTER))
    fraction = _validation_fraction(train.clicks)
    impressions = int((1 - fraction) * train.impressions)
    batch = _batch_size(impressions)
    steps = max(impressions // batch, 1)
    epochs = min(max(math.ceil(_STEPS / steps), 1), 5)
    lines = [
        f"# A first configuration for {schema.name}, made from what the log holds. Train with",
        f"#   cdp_torchrec train {layer} configs/interest/{interest}.toml",
        "# Other systems are in configs/interest/. Change what you like: comments say why.",
        "",
        "[data]",
        f"dir = {_quoted(str(data_dir))} # from the directory in which the training starts",
        *_exclusions(dropped),
        *_comment(
            f"The latest {fraction:.0%} of the training requests, with about "
            f"{fraction * train.clicks:,.0f} of {train.clicks:,} clicks, choose the checkpoint: "
            "with fewer the choice is chance, and more are lost for training."
        ),
        f"validation_fraction = {fraction}",
        "",
        "[data.history]",
        *_history(log.history_lengths),
        *_vocabularies(schema, log, minimum, _entities(kept, schema)),
        "",
        "[model.interaction]",
        *_interaction(outside, has_history=has_history),
        "",
        "[optimizer.sparse]",
        'kind = "rowwise_adagrad" # fused and fast on a CPU, too; "adam" is the paper\'s',
        "lr = 0.02",
        "",
        "[optimizer.dense]",
        "lr = 3e-3 # try 1e-3 if the validation metric falls early, and seed=1 before you believe",
        "",
        "[trainer]",
        *_comment(
            f"{impressions:,} training impressions in batches of {batch:,} are {steps:,} steps in "
            "each pass. Larger batches need more passes or a higher learning rate. The number of "
            "ranks must divide it."
        ),
        f"global_batch_size = {batch}",
        *_comment(
            f"{epochs * steps:,} steps at most: about {_STEPS} are enough for a first look. Small "
            "logs are learnt by heart within a few passes: patience ends the training then."
        ),
        f"max_epochs = {epochs}",
        f"validate_every_steps = {max(steps // 2, 1)} # twice in each pass",
        "patience = 3 # validations in a row without a better one",
    ]
    return "\n".join(lines) + "\n"


def _min_count(schema: Schema, log: LogStatistics, entity: str) -> int:
    """Training count from which on an id gets a row of its own.

    A count that stands for enough clicks, unless hardly any id has it, as in a day of a log with
    many items: then the count from which on rows see a tenth of the training, but no smaller one
    than 20, below which rows are learnt by heart (measured on trivago, data/README.md). And if no
    id has that, that of the most frequent one: no table is without rows.
    """
    wanted = _count_of_clicks(schema, log, entity)
    covering = log.count_that_covers(entity, _LEAST_SHARE)
    most = int(log.training_counts[entity].max(initial=1))
    return max(min(wanted, max(covering, _LEAST_COUNT), most), 1)


def _count_of_clicks(schema: Schema, log: LogStatistics, entity: str) -> int:
    """Training count that stands for enough clicks.

    Where the candidates of the test split are mostly others, as in news, what training says about
    one of them rarely helps, and is learnt by heart.
    """
    if entity == "user":
        return _REQUESTS_PER_USER
    candidate = [f for f in schema.features if f.entity == entity and f.level == "candidate"]
    clicks = _clicks_per_count(schema, entity)
    minimum = max(math.ceil(_CLICKS_PER_ROW / clicks), _CLICKS_PER_ROW)
    if candidate and max(log.share_known(f, minimum) for f in candidate) < _HALF:
        return math.ceil(_CLICKS_PER_PASSING_ROW / clicks)
    return minimum


def _clicks_per_count(schema: Schema, entity: str) -> float:
    """Clicks that an id has for each time that it occurs in training, about."""
    train = schema.splits["train"]
    levels = {f.level for f in schema.features if f.entity == entity}
    counts = train.impressions if "candidate" in levels else train.requests
    return max(train.clicks / counts, 1e-4)


def _dropped(schema: Schema, log: LogStatistics) -> dict[str, str]:
    """Features that say nothing, each with the reason."""
    needed = {"item_id", "user_id", schema.gate_feature()}
    reasons = {}
    for feature in schema.features:
        if feature.entity is None or feature.name in needed:
            continue
        distinct = int((log.training_counts[feature.entity] > 0).sum())
        if distinct <= 1:
            reasons[feature.name] = "has one value in training"
        elif feature.role in ("context", "scene") and log.share_known(feature, 1) < _HALF:
            reasons[feature.name] = (
                f"{1 - log.share_known(feature, 1):.0%} of its test values never occur in training"
            )
    return reasons


def _outside_the_tower(
    features: list[Feature], log: LogStatistics, minimum: Mapping[str, int]
) -> dict[str, float]:
    """Ids that the test split hardly knows, with the share that it does know."""
    shares = {
        f.name: log.share_known(f, minimum[f.entity]) for f in features if f.entity is not None
    }
    return {name: share for name, share in shares.items() if share < _HALF}


def _entities(features: list[Feature], schema: Schema) -> list[str]:
    used = [*features, *schema.history.attributes]
    return list(dict.fromkeys(f.entity for f in used if f.entity is not None))


def _validation_fraction(clicks: int) -> float:
    return round(min(max(_VALIDATION_CLICKS / max(clicks, 1), 0.02), 0.2), 2)


def _batch_size(impressions: int) -> int:
    """A power of two, so that any usual number of ranks divides it."""
    wanted = max(impressions / _STEPS_PER_EPOCH, 1)
    return min(max(2 ** math.floor(math.log2(wanted)), 64), 4096)


def _exclusions(dropped: Mapping[str, str]) -> list[str]:
    if not dropped:
        return []
    reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
    return [*_comment(f"Not read at all: {reasons}."), f"exclude_features = {_list(dropped)}"]


def _history(lengths: np.ndarray) -> list[str]:
    if not np.any(lengths):
        return _comment(
            "No training request has a behaviour before it: only models without history learn "
            "anything here (configs/interest/none.toml). If users did act before, compare user_id "
            "and timestamp of requests and behaviours."
        )
    half, most = (int(np.quantile(lengths, q)) for q in (0.5, 0.9))
    kept = 100 if half <= 100 else 200
    return [
        *_comment(
            f"Half of the training requests have at most {half} behaviours before them, nine of "
            f"ten at most {most}, {np.mean(lengths == 0):.0%} none. Longer histories cost time."
        ),
        f"max_length = {kept}",
        "# The last behaviour, the one before, ..., all older: counted apart.",
        f"count_segments = {list(_COUNT_SEGMENTS)}",
        "# In days, from a minute and a half to a season: counted apart by age as well.",
        f"count_ages = {list(_COUNT_AGES)}",
    ]


def _vocabularies(
    schema: Schema, log: LogStatistics, minimum: Mapping[str, int], entities: list[str]
) -> list[str]:
    """A minimum for each entity that has rarer ids."""
    lines = []
    for entity in entities:
        counts = log.training_counts[entity]
        rare = int((counts < minimum[entity]).sum())
        if rare == 0 or len(counts) <= _FEW_IDS:
            continue
        wanted = _count_of_clicks(schema, log, entity)
        clicks = f"about {wanted * _clicks_per_count(schema, entity):.0f} clicks"
        if entity == "user":
            why = "a user's taste is in the history; a row of one's own pays from there on"
        elif minimum[entity] == wanted:
            why = clicks
        else:
            why = f"{(counts >= wanted).sum():,} at {wanted:,}, which stands for {clicks}"
        lines += [
            "",
            f"[data.vocabulary.{entity}]",
            *_comment(
                f"{len(counts) - rare:,} of {len(counts):,} ids have a row of their own "
                f"({why}), and {log.share_trained(entity, minimum[entity]):.1%} of the training; "
                "the others share one. Lower: more ids are told apart, and more is learnt by "
                "heart."
            ),
            f"min_count = {minimum[entity]}",
        ]
    return lines


def _interaction(outside: Mapping[str, float], *, has_history: bool) -> list[str]:
    lines = []
    if has_history:
        lines += ["# How often the user met this very item, for every system."]
        lines += ["history_counts = true"]
    if outside:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in outside.items())
        lines += _comment(
            "Ids of the test split that have a row of their own are too few to learn by: "
            f"{shares}. They reach the tower through the interest module only."
        )
        lines.append(f"exclude = {_list(outside)}")
    return lines


def _comment(text: str) -> list[str]:
    """Comment lines of at most 100 columns."""
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > 100:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _list(names: Mapping[str, object]) -> str:
    return "[" + ", ".join(_quoted(name) for name in names) + "]"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
