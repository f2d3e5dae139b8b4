"""The figures of a dataset as a whole, from one pass over its requests and one over its store."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cdp_torchrec.data.clocks import Clock
from cdp_torchrec.data.history.store import HistoryStore
from cdp_torchrec.data.prepare.dataset_files import row_groups
from cdp_torchrec.data.prepare.hash_figures import measure_hashes
from cdp_torchrec.data.prepare.raw_ids import example_ids, similar_ids
from cdp_torchrec.data.prepare.split_figures import SplitFigures
from cdp_torchrec.data.schema import Schema
from cdp_torchrec.data.summary import Figure, Summary
from cdp_torchrec.data.tables.stored_vocabulary import training_counts

_ROWS = 1 << 20
"""Behaviours that are read at once."""
_FEW = 0.2
"""Shares that need an example."""

Figures = dict[str, dict[str, Figure]]


def summarise(dataset: Path, schema: Schema) -> Summary:
    """All figures of a dataset directory.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    gate = schema.history.category_entity
    num_categories = schema.entities[gate].num_ids if gate else 0
    store = HistoryStore(dataset / "history", schema.history, num_categories=num_categories)
    seen = {
        name: int((training_counts(dataset, schema, name) > 0).sum()) for name in schema.entities
    }
    splits = {}
    for name in schema.splits:
        split = splits[name] = SplitFigures(schema, store, seen, with_leaks=name == "train")
        for table in row_groups(dataset / name, split.columns):
            split.add(table, of=schema.splits[name].impressions)
    train, test = splits["train"], splits["test"]
    figures: Figures = {}
    for name, split in splits.items():
        for figure, value in split.figures().items():
            figures.setdefault(figure, {})[name] = value
    figures |= train.leaks()
    figures |= _columns(schema, train, test)
    figures |= _users(store, train, test)
    figures |= _similar(dataset, schema)
    figures |= measure_hashes(dataset, schema)
    for name, values in _clocks(schema, store, train, test).items():
        figures.setdefault(name, {}).update(values)
    for name, value in _behaviours(store, train, test).items():
        figures.setdefault(name, {})["behaviours"] = value
    _give_examples(figures, dataset, schema, store, train, test)
    figures["new_users"] = {"test": test.new_users(seen["user"])}
    if gate and schema.gate_feature() is None:
        figures["no_gate_feature"] = {gate: Figure(1.0, 1)}
    return Summary(fingerprint=schema.fingerprint(), figures=figures)


def share(part: float, whole: float) -> Figure:
    """A share and what it is of."""
    return Figure(float(part) / max(float(whole), 1.0), int(whole))


def _columns(schema: Schema, train: SplitFigures, test: SplitFigures) -> Figures:
    """What is missing, unknown, constant or far away, by feature."""
    figures: Figures = {}
    for feature in schema.features:
        name = feature.name
        old, new = train.cells[name], test.cells[name]
        figures.setdefault("missing_in_train", {})[name] = share(old.missing, old.total)
        more = new.missing / max(new.total, 1) - old.missing / max(old.total, 1)
        figures.setdefault("missing_only_in_test", {})[name] = Figure(more, new.total)
        figures.setdefault("constant", {})[name] = Figure(float(old.is_constant), old.total)
        if feature.kind != "number":
            known = new.total - new.missing
            figures.setdefault("unknown_in_test", {})[name] = share(new.unseen, known)
        elif old.total > old.missing and not old.is_constant:
            farthest = max(old.low, old.high, key=lambda value: abs(value - feature.mean))
            largest = Figure(max(abs(old.low), abs(old.high)), old.total - old.missing)
            figures.setdefault("largest_number", {})[name] = largest
            part = ((farthest - feature.mean) / feature.std) ** 2 / (old.total - old.missing)
            figures.setdefault("farthest_number", {})[name] = Figure(
                part, old.total - old.missing, f"{farthest:.6g}"
            )
    return figures


def _users(store: HistoryStore, train: SplitFigures, test: SplitFigures) -> Figures:
    """Whether a user has nearly everything, or each user one request only."""
    behaviours = store.behaviours_of_users()
    requests = train.requests_of_users + test.requests_of_users
    figures: Figures = {"largest_user": {}}
    for of, counts in (("behaviours", behaviours), ("requests", requests)):
        figures["largest_user"][of] = share(counts.max(initial=0), counts.sum())
    own = train.requests_of_users[train.requests_of_users > 0]
    figures["users_of_one_request"] = {"users": share((own == 1).sum(), len(own))}
    return figures


def _similar(dataset: Path, schema: Schema) -> Figures:
    figures = {entity: similar_ids(dataset, entity) for entity in schema.entities}
    return {"similar_ids": figures}


def _clocks(
    schema: Schema, store: HistoryStore, train: SplitFigures, test: SplitFigures
) -> Figures:
    behaviours = Clock()
    for rows in _chunks(len(store.by_time.timestamp)):
        behaviours.add(np.asarray(store.by_time.timestamp[rows]))
    clocks = {
        "train": train.clock,
        "test": test.clock,
        "behaviours": behaviours,
    }
    figures: Figures = {}
    for of, clock in clocks.items():
        if clock.count == 0:
            continue
        figures.setdefault("wrong_clock", {})[of] = Figure(
            clock.wrong_unit / clock.count, clock.count, clock.example
        )
        for name in ("before_1990", "after_2100"):
            figures.setdefault(name, {})[of] = share(getattr(clock, name), clock.count)
        figures.setdefault("span", {})[of] = Figure(clock.last - clock.first, clock.count)
        figures.setdefault("first_time", {})[of] = Figure(clock.first, clock.count)
        figures.setdefault("last_time", {})[of] = Figure(clock.last, clock.count)
    last = max(train.clock.last, test.clock.last)
    if behaviours.count and last > 0:
        ratio = Figure(behaviours.last / last, behaviours.count)
        figures["clock_ratio"] = {"behaviours": ratio}
    first = min(train.clock.first, test.clock.first)
    if behaviours.count and last > first:
        lag = Figure((last - behaviours.last) / (last - first), behaviours.count)
        figures["behaviours_lag"] = {"behaviours": lag}
    gap = schema.splits["test"].first_timestamp - schema.splits["train"].last_timestamp
    figures["gap_between_splits"] = {"splits": Figure(gap, 1)}
    return figures


def _behaviours(store: HistoryStore, train: SplitFigures, test: SplitFigures) -> dict[str, Figure]:
    """Whether behaviours are on what is shown, before the last request, and there once."""
    by_time = store.by_time
    total = len(by_time.timestamp)
    last_request = max(train.clock.last, test.clock.last)
    shown_items = train.shown_items | test.shown_items
    shown_categories = train.shown_categories | test.shown_categories
    shown_categories[0] = False  # what has no category is in none
    first_rows = np.cumsum(store.behaviours_of_users())
    late = on_items = in_categories = with_category = repeated = 0
    for rows in _chunks(total):
        # One row more, so that the first of a block has one before it.
        begin = max(rows.start - 1, 0)
        item, times = by_time.item[begin : rows.stop], by_time.timestamp[begin : rows.stop]
        same = (item[1:] == item[:-1]) & (times[1:] == times[:-1])
        if by_time.action is not None:
            action = by_time.action[begin : rows.stop]
            same &= action[1:] == action[:-1]
        starts = first_rows[(first_rows > begin) & (first_rows < rows.stop)] - begin - 1
        same[starts] = False
        repeated += int(same.sum())
        late += int((by_time.timestamp[rows] >= last_request).sum())
        on_items += int(shown_items[by_time.item[rows]].sum())
        if by_time.category is not None:
            category = by_time.category[rows]
            with_category += int((category > 0).sum())
            in_categories += int(shown_categories[category].sum())
    figures = {"behaviours": Figure(total, total)}
    if total:
        figures["after_last_request"] = share(late, total)
        figures["behaviour_items"] = share(on_items, total)
        figures["repeated_behaviours"] = share(repeated, total)
        if by_time.category is not None and shown_categories.any():
            figures["behaviour_categories"] = share(in_categories, with_category)
    return figures


def _give_examples(
    figures: Figures,
    dataset: Path,
    schema: Schema,
    store: HistoryStore,
    train: SplitFigures,
    test: SplitFigures,
) -> None:
    """Raw ids of both sides where requests and behaviours hardly meet, and the largest users."""
    behaviours = store.behaviours_of_users()
    requests = train.requests_of_users + test.requests_of_users
    items, categories = (
        np.unique(np.zeros(0, np.int32) if column is None else column[:_ROWS])
        for column in (store.by_time.item, store.by_time.category)
    )
    shown_categories = np.flatnonzero(train.shown_categories | test.shown_categories)
    category = (schema.history.category_entity or "", shown_categories, categories)
    sides = {
        "known_users": ("user", np.flatnonzero(requests), np.flatnonzero(behaviours)),
        "behaviour_items": (
            schema.history.item_entity,
            np.flatnonzero(train.shown_items | test.shown_items),
            items,
        ),
        "behaviour_categories": category,
        "gate_passed": category,
    }
    for name, (entity, shown, behaved) in sides.items():
        for of, figure in figures.get(name, {}).items():
            if figure.value < _FEW:
                left, right = (example_ids(dataset, entity, ids) for ids in (shown, behaved))
                text = f"such as {left} and {right}"
                figures[name][of] = replace(figure, example=text)
    for of, counts in (("behaviours", behaviours), ("requests", requests)):
        figure = figures["largest_user"][of]
        if figure.value > _FEW:
            text = example_ids(dataset, "user", np.array([np.argmax(counts)]))
            figures["largest_user"][of] = replace(figure, example=text)


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, _ROWS):
        yield slice(start, min(start + _ROWS, length))
