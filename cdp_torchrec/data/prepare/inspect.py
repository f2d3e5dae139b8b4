"""What a dataset directory holds, in words: the first look at a log before training on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.days import load_days, superseded
from cdp_torchrec.data.plausibility import Finding, judge, judge_days
from cdp_torchrec.data.prepare.dataset_files import row_groups, values
from cdp_torchrec.data.prepare.summarise import summarise
from cdp_torchrec.data.prepare.summary_text import describe_findings, describe_summary
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.schema import Day, Feature, Schema, SplitName, load_schema
from cdp_torchrec.data.summary import load_summary
from cdp_torchrec.data.tables.stored_vocabulary import training_counts
from cdp_torchrec.text_table import aligned_table

MINIMUM_COUNTS = (1, 2, 5, 10)
QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def describe_dataset(dataset: Path) -> tuple[str, list[Finding]]:
    """Counts, time spans, id spaces, history and gate of a dataset directory.

    Returns:
        All of it in words, and what is implausible in it, which is among them.

    Raises:
        DatasetError: no dataset there, or a file is missing or damaged.
    """
    schema = load_schema(dataset)
    counts = {name: training_counts(dataset, schema, name) for name in schema.entities}
    seen = {name: int((count > 0).sum()) for name, count in counts.items()}
    splits = {split: _read_split(dataset, schema, split, seen) for split in schema.splits}
    # In a merged store the behaviours of later days are no longer apart.
    stored = bool(superseded(dataset))
    days = load_days(dataset, schema)
    summary = load_summary(dataset, schema) if stored else summarise(dataset, schema)
    findings = judge(summary)
    sections = [
        [f"{schema.name}: {schema.source}", f"schema {schema.fingerprint()}"],
        [describe_summary(schema, summary, findings)],
        _describe_splits(schema, splits),
        *_describe_days(days),
        *_describe_doubts(judge_days(dataset, schema, days)),
        _describe_entities(counts),
        _describe_features(schema, splits),
        _describe_history(schema, splits),
    ]
    if schema.history.category_entity:
        sections.append(_describe_gate(splits))
    if schema.bayes:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in schema.bayes.items())
        sections.append([f"true click probabilities on the test split: {scores}"])
    return "\n\n".join("\n".join(lines) for lines in sections), findings


@dataclass
class _Gate:
    """Sums over the impressions of one label whose user has a history."""

    impressions: int = 0
    empty: int = 0
    """Impressions with no behaviour in the target category."""
    share: float = 0.0
    """Sum of the shares of the history that lie in the target category."""

    def add(self, gated: np.ndarray, history: np.ndarray) -> None:
        gated, history = gated[history > 0], history[history > 0]
        self.impressions += len(history)
        self.empty += int((gated == 0).sum())
        self.share += float((gated / history).sum())


@dataclass
class _Cells:
    """Ids of a feature in a split."""

    total: int = 0
    missing: int = 0
    unseen: int = 0
    """With training count 0."""


@dataclass
class _SplitStatistics:
    """What a pass over the requests of a split finds."""

    history_lengths: list[np.ndarray] = field(default_factory=list)
    list_lengths: list[np.ndarray] = field(default_factory=list)
    clicks: int = 0
    clicked_in_history: int = 0
    clicked_last: int = 0
    gates: tuple[_Gate, _Gate] = field(default_factory=lambda: (_Gate(), _Gate()))
    """Of label 0 and of label 1."""
    cells: dict[str, _Cells] = field(default_factory=dict)


_Splits = Mapping[SplitName, _SplitStatistics]


def _read_split(
    dataset: Path, schema: Schema, split: str, seen: Mapping[str, int]
) -> _SplitStatistics:
    result = _SplitStatistics()
    ids = [f for f in schema.features if f.kind != "number"]
    store = DatasetReader(DataConfig(dir=dataset)).store
    gate = schema.gate_feature()
    columns = {"user_id", "timestamp", "history_length", "label", "history_rank"}
    for table in row_groups(dataset / split, sorted(columns | {f.name for f in ids})):
        label, rank = values(table, "label"), values(table, "history_rank")
        lengths = table["label"].combine_chunks().value_lengths().to_numpy()
        history = table["history_length"].to_numpy()
        result.history_lengths.append(history)
        result.list_lengths.append(lengths)
        result.clicks += int((label == 1).sum())
        result.clicked_in_history += int(((label == 1) & (rank >= 0)).sum())
        result.clicked_last += int(((label == 1) & (rank == 0)).sum())
        for f in ids:
            codes = values(table, f.name)
            cells = result.cells.setdefault(f.name, _Cells())
            cells.total += len(codes)
            cells.missing += int((codes == 0).sum())
            cells.unseen += int((codes > seen[f.entity or ""]).sum())
        if gate:
            categories = values(table, gate)
            user = np.repeat(table["user_id"].to_numpy(), lengths)
            before = np.repeat(table["timestamp"].to_numpy(), lengths)
            _, slices = store.gated(user, categories, before)
            history = np.repeat(history, lengths)
            for value, of_label in enumerate(result.gates):
                of_label.add(slices.lengths[label == value], history[label == value])
    return result


def _describe_splits(schema: Schema, splits: _Splits) -> list[str]:
    rows = [["split", "requests", "impressions", "clicks", "CTR", "candidates", "first", "last"]]
    for name, split in schema.splits.items():
        lengths = np.concatenate(splits[name].list_lengths)
        rows.append(
            [
                name,
                f"{split.requests:,}",
                f"{split.impressions:,}",
                f"{split.clicks:,}",
                _percent(split.clicks, split.impressions),
                f"{lengths.min()}..{lengths.max()}, mean {lengths.mean():.2f}",
                utc(split.first_timestamp),
                utc(split.last_timestamp),
            ]
        )
    return [aligned_table(rows)]


def _describe_days(days: Sequence[Day]) -> list[list[str]]:
    if not days:
        return []
    rows = [
        ["appended", "requests", "impressions", "CTR", "behaviours", "new ids", "first", "last"]
    ]
    for day in days:
        split = day.requests
        new = [e.num_ids - day.entities_before[name].num_ids for name, e in day.entities.items()]
        rows.append(
            [
                day.name,
                f"{split.requests:,}",
                f"{split.impressions:,}",
                _percent(split.clicks, split.impressions),
                f"{day.num_behaviours:,}",
                f"{sum(new):,}",
                utc(split.first_timestamp),
                utc(split.last_timestamp),
            ]
        )
    return [["days that data.train_on and data.test_on may name", aligned_table(rows)]]


def _describe_doubts(found: Mapping[str, Sequence[Finding]]) -> list[list[str]]:
    doubts = [
        Finding(doubt.level, f"{day}: {doubt.text}") for day, of in found.items() for doubt in of
    ]
    return [[describe_findings(doubts)]] if doubts else []


def _describe_entities(counts: Mapping[str, np.ndarray]) -> list[str]:
    rows = [["entity", "ids", *(f"count < {minimum}" for minimum in MINIMUM_COUNTS)]]
    for name, count in counts.items():
        shares = [_percent((count < minimum).sum(), len(count)) for minimum in MINIMUM_COUNTS]
        rows.append([name, f"{len(count):,}", *shares])
    return ["share of ids under a minimum count in training", aligned_table(rows)]


def _describe_features(schema: Schema, splits: _Splits) -> list[str]:
    rows = [["feature", "role", "level", "kind", "test unseen", "test missing", "mean", "std"]]
    for f in schema.features:
        rows.append([f.name, f.role, f.level, f.kind, *_feature_cells(f, splits["test"])])
    title = "test ids without a training count (unseen) and without a value (missing)"
    return [title, aligned_table(rows)]


def _feature_cells(feature: Feature, test: _SplitStatistics) -> list[str]:
    if feature.kind == "number":
        return ["-", "-", f"{feature.mean:.4g}", f"{feature.std:.4g}"]
    cells = test.cells[feature.name]
    return [_percent(cells.unseen, cells.total), _percent(cells.missing, cells.total), "-", "-"]


def _describe_history(schema: Schema, splits: _Splits) -> list[str]:
    history = schema.history
    rows = [["history", "mean", *(f"p{100 * q:.0f}" for q in QUANTILES), "empty"]]
    rows[0] += ["clicked in history", "clicked is last"]
    for name, split in splits.items():
        lengths = np.concatenate(split.history_lengths)
        quantiles = np.quantile(lengths, QUANTILES)
        rows.append(
            [
                name,
                f"{lengths.mean():.2f}",
                *(f"{quantile:.0f}" for quantile in quantiles),
                _percent((lengths == 0).sum(), len(lengths)),
                _percent(split.clicked_in_history, split.clicks),
                _percent(split.clicked_last, split.clicks),
            ]
        )
    attributes = [f"{a.name}: {a.meaning}" for a in history.attributes]
    title = (
        f"{history.num_behaviours:,} behaviours of {history.num_users:,} users; "
        "behaviours before each request:"
    )
    return [title, aligned_table(rows), *attributes]


def _describe_gate(splits: _Splits) -> list[str]:
    rows = [["gate", "share, clicked", "share, not", "empty, clicked", "empty, not"]]
    for name, split in splits.items():
        gates = (split.gates[1], split.gates[0])
        shares = [_percent(gate.share, gate.impressions) for gate in gates]
        rows.append([name, *shares, *(_percent(gate.empty, gate.impressions) for gate in gates)])
    title = (
        "category gate of impressions with a history: share that passes, and how often none does"
    )
    return [title, aligned_table(rows)]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"
