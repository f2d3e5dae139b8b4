"""All that the page shows of a dataset: one pass over each split, and the untrained scorers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdp_torchrec.data.config import DataConfig
from cdp_torchrec.data.days import day_folder, grown, load_days
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.manifest import check_at_open
from cdp_torchrec.data.plausibility import Finding, judge, judge_days
from cdp_torchrec.data.prepare.split_figures import Lengths
from cdp_torchrec.data.reader import DatasetReader
from cdp_torchrec.data.request_files import Impressions, RequestFiles
from cdp_torchrec.data.schema import Day, Schema, SplitName
from cdp_torchrec.data.summary import Summary, load_summary
from cdp_torchrec.describe.gate_levels import GateLevel, GateLevels
from cdp_torchrec.describe.histories import Histories
from cdp_torchrec.describe.id_coverage import IdCoverage, starter_minimum_counts
from cdp_torchrec.describe.list_order import ListOrder
from cdp_torchrec.describe.over_time import OverTime, TimeBins, bins_of
from cdp_torchrec.describe.single_features import SingleFeatures
from cdp_torchrec.metrics import MetricReport
from cdp_torchrec.progress import ProgressBar
from cdp_torchrec.reference_scorers import reference_reports


class SplitMeasures:
    """What the requests of one split show."""

    def __init__(self, bins: TimeBins, histories: Histories) -> None:
        self.time = OverTime(bins)
        self.order = ListOrder()
        self.histories = histories
        self.candidates = Lengths()
        self.both_labels = 0
        """Requests with clicked and other candidates: those that GAUC is measured on."""

    def add(self, part: Impressions, *, category: str | None) -> None:
        """Add whole requests."""
        self.time.add(part)
        self.order.add(part)
        self.histories.add(part, category=category)
        requests = part.request
        shown, clicked = (
            np.bincount(index, minlength=len(requests["request_id"]))
            for index in (part.request_index, part.request_index[part.candidate["label"] == 1])
        )
        self.candidates.add(shown)
        self.both_labels += int(((clicked > 0) & (clicked < shown)).sum())


@dataclass(frozen=True)
class LogMeasures:
    """Everything that is drawn, said and judged."""

    schema: Schema
    summary: Summary
    implausible: list[Finding]
    """What the checks of the preparation say."""
    splits: Mapping[SplitName, SplitMeasures]
    gates: list[GateLevel]
    """By the features that a category gate could go by; none in a log without behaviours."""
    coverage: IdCoverage
    minimum_counts: Mapping[str, int] | None
    """Of the dataset's starter.toml; None without one."""
    single: Mapping[str, float]
    """GAUC on the test split by the only feature that ranks, the best first."""
    scorers: Mapping[str, MetricReport]
    """Untrained ones, on the test split."""
    days: Sequence[Day]
    """That were appended since."""
    appended: OverTime | None
    """Their clicks; None without days."""
    doubts: Mapping[str, Sequence[Finding]]
    """What the checks of each day say, by its name."""

    @property
    def bins(self) -> TimeBins:
        """Of the clicks over time."""
        return self.splits["train"].time.bins

    def min_count(self, entity: str) -> int | None:
        """The starter's minimum count of an entity; None without a starter."""
        return None if self.minimum_counts is None else self.minimum_counts.get(entity, 1)


def measure_log(dataset: Path) -> LogMeasures:
    """Read a dataset directory twice; collective.

    Memory grows with the number of ids, not with that of requests or behaviours.

    Args:
        dataset: dataset directory.

    Raises:
        DatasetError: no dataset there, or a file is missing or damaged.
    """
    reader = DatasetReader(DataConfig(dir=dataset))
    schema, store = reader.schema, reader.store
    assert isinstance(store, HistoryStore)  # without appended days there is one segment
    summary = load_summary(dataset, schema)
    minimum_counts = starter_minimum_counts(dataset)
    check_at_open(dataset, "vocabulary")
    days = load_days(dataset, schema)
    bins = bins_of([*schema.splits.values(), *(day.requests for day in days)])
    splits: dict[SplitName, SplitMeasures] = {}
    single, gates = SingleFeatures(schema), GateLevels(schema)
    last = [split.last_timestamp for split in schema.splits.values()]
    last.append(int(summary.value("last_time", "behaviours") or 0))
    coverage = IdCoverage(dataset, schema, store, until=max(last))
    files = {}
    for name in ("train", "test"):
        check_at_open(dataset, name)
        files[name] = RequestFiles(dataset, schema, name)
        split = splits[name] = SplitMeasures(bins, Histories(store))
        for part in _blocks(files[name], name):
            split.add(part, category=schema.gate_feature())
            gates.learn(part)
            if name == "train":
                single.learn(part)
            else:
                single.measure(part)
                coverage.add(part)
    return LogMeasures(
        schema=schema,
        summary=summary,
        implausible=judge(summary),
        splits=splits,
        gates=gates.measure(files["test"], store) if schema.history.num_behaviours else [],
        coverage=coverage,
        minimum_counts=minimum_counts,
        single=single.gauc(),
        scorers=reference_reports(DataConfig(dir=dataset)),
        days=days,
        appended=_appended(dataset, schema, days, bins) if days else None,
        doubts=judge_days(dataset, schema, days),
    )


def _appended(dataset: Path, base: Schema, days: Sequence[Day], bins: TimeBins) -> OverTime:
    names = [day.name for day in days]
    for name in names:
        check_at_open(day_folder(dataset, name), "requests")
    found = OverTime(bins)
    for part in _blocks(RequestFiles(dataset, grown(base, days), *names), "appended days"):
        found.add(part)
    return found


def _blocks(files: RequestFiles, name: str) -> Iterator[Impressions]:
    with ProgressBar(f"read {name}", total=files.num_impressions, unit="impressions") as bar:
        for block in range(len(files.blocks)):
            part = files.read(block)
            yield part
            bar.advance(len(part.request_index))
