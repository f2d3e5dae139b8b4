"""The figures of a day that is appended, from one pass over its requests."""

from pathlib import Path

from cdp_torchrec.data.days import Segment
from cdp_torchrec.data.history.segments import SegmentedHistory, extended
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.plausibility_checks import DAY_MS
from cdp_torchrec.data.prepare.dataset_files import row_groups
from cdp_torchrec.data.prepare.split_figures import SplitFigures
from cdp_torchrec.data.prepare.summarise import Figures, share
from cdp_torchrec.data.schema import USER_ENTITY, Day, Schema
from cdp_torchrec.data.summary import Figure, Summary


def summarise_day(
    earlier: HistoryStore | SegmentedHistory,
    schema: Schema,
    day: Day,
    folder: Path,
    base: Summary,
) -> Summary:
    """All figures of a day.

    Args:
        earlier: the behaviours before the day.
        schema: that of the dataset with the day.
        day: what it added.
        folder: where its files are.
        base: figures of the log that the dataset was prepared from.

    Raises:
        DatasetError: a file is damaged.
    """
    own = Segment(folder, day.num_behaviours, day.entities)
    store = extended(earlier, own, schema.history)
    before = {name: entity.num_ids for name, entity in day.entities_before.items()}
    split = SplitFigures(schema, store, before, with_leaks=True)
    for table in row_groups(folder / "requests", split.columns):
        split.add(table, of=day.requests.impressions)
    figures: Figures = {name: {day.name: value} for name, value in split.figures().items()}
    figures |= split.leaks()
    figures["new_users"] = {day.name: split.new_users(before[USER_ENTITY])}
    figures |= _columns(schema, split, base)
    trained = schema.splits["train"].click_rate
    ratio = day.requests.clicks / day.requests.impressions / trained
    last = [*(d.last_timestamp for d in schema.days[:-1])] or [
        int(base.value("last_time", "behaviours") or 0),
        *(s.last_timestamp for s in schema.splits.values()),
    ]
    gap = (day.requests.first_timestamp - max(last)) / DAY_MS
    clock = split.clock
    of_day = {
        "click_rate_ratio": Figure(ratio, day.requests.impressions),
        "behaviours": Figure(day.num_behaviours, day.num_behaviours),
        "gap_days": Figure(gap, 1),
        "span": Figure(clock.last - clock.first, clock.count),
        "last_time": Figure(clock.last, clock.count),
    }
    figures |= {name: {day.name: figure} for name, figure in of_day.items()}
    return Summary(fingerprint=schema.fingerprint(), figures=figures)


def _columns(schema: Schema, split: SplitFigures, base: Summary) -> Figures:
    """What is unknown, and what is missing more often than in the training split, by feature."""
    figures: Figures = {"unknown": {}, "missing_more": {}}
    for feature in schema.features:
        cells = split.cells[feature.name]
        missing = base.value("missing_in_train", feature.name) or 0.0
        more = cells.missing / max(cells.total, 1) - missing
        figures["missing_more"][feature.name] = Figure(more, cells.total)
        if feature.kind != "number":
            figures["unknown"][feature.name] = share(cells.unseen, cells.total - cells.missing)
    return figures
