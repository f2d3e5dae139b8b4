"""The sections of the page: which figures stand where, and how to read each."""

import math

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.hash_figures import HASH_TITLE, hash_rows
from cdp_torchrec.data.prepare.split_figures import Lengths
from cdp_torchrec.data.schema import USER_ENTITY
from cdp_torchrec.describe import figures
from cdp_torchrec.describe.id_coverage import MINIMUM_COUNTS
from cdp_torchrec.describe.measure import LogMeasures
from cdp_torchrec.describe.over_time import OverTime
from cdp_torchrec.describe.page import MARK, Section
from cdp_torchrec.reference_scorers import TRUTH
from cdp_torchrec.undefined import shown

_MOST_DRAWN = 7
"""Entities whose coverage is drawn, those with most ids; the table has the others, too."""
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def sections(log: LogMeasures) -> list[Section]:
    """All of them, in the order of the page."""
    parts = [_size(log), _time(log), *_days(log), _lists(log), _order(log), _histories(log)]
    if log.gates:
        parts.append(_gates(log))
    return [*parts, _ids(log), *_hashes(log), _ranking(log), _scorers(log)]


def _size(log: LogMeasures) -> Section:
    rows = [["", "train", "test"]]
    splits = [log.schema.splits[name] for name in ("train", "test")]
    measured = [log.splits[name] for name in ("train", "test")]
    rows += [
        ["first request", *(utc(split.first_timestamp) for split in splits)],
        ["last request", *(utc(split.last_timestamp) for split in splits)],
        ["requests", *(f"{split.requests:,}" for split in splits)],
        ["with clicked and other candidates", *(f"{m.both_labels:,}" for m in measured)],
        ["impressions", *(f"{split.impressions:,}" for split in splits)],
        ["clicks", *(f"{split.clicks:,}" for split in splits)],
        ["click rate", *(_percent(split.clicks, split.impressions) for split in splits)],
        ["candidates, mean", *(f"{split.impressions / split.requests:.1f}" for split in splits)],
    ]
    history = log.schema.history
    return Section(
        "Size and time",
        f"Beside the requests the store holds {history.num_behaviours:,} behaviours. Training and "
        "test must not overlap in time, and GAUC is measured on requests with both labels only.",
        rows=rows,
    )


def _time(log: LogMeasures) -> Section:
    curves: dict[str, OverTime] = {name: split.time for name, split in log.splits.items()}
    if log.appended is not None:
        curves["appended"] = log.appended
    return Section(
        "Click rate over time",
        f"A line that jumps, or a test split (orange) at another height than training (blue), is "
        f"another mixture of pages or another log; each point is one {log.bins.unit}, bands are "
        "95 % intervals.",
        figure=lambda: figures.draw_time(curves),
    )


def _days(log: LogMeasures) -> list[Section]:
    """Days that were appended; everything else on the page is of the log before them."""
    if not log.days:
        return []
    titles = ["appended", "first request", "requests", "impressions", "click rate", "behaviours"]
    rows = [[*titles, "new users", "new items", "doubts"]]
    for day in log.days:
        split, item = day.requests, log.schema.history.item_entity
        new = [
            day.entities[name].num_ids - day.entities_before[name].num_ids
            for name in (USER_ENTITY, item)
        ]
        rows.append(
            [
                day.name,
                utc(split.first_timestamp),
                f"{split.requests:,}",
                f"{split.impressions:,}",
                _percent(split.clicks, split.impressions),
                f"{day.num_behaviours:,}",
                *(f"{count:,}" for count in new),
                str(len(log.doubts.get(day.name, ()))),
            ]
        )
    return [
        Section(
            "Appended days",
            "Their clicks are the green points above, what is doubtful about one stands on top of "
            "the page. All that follows is of the log before them, by which the configuration was "
            "chosen.",
            rows=rows,
        )
    ]


def _lists(log: LogMeasures) -> Section:
    return Section(
        "Lists and places",
        "Left: how long the lists are. Middle: the click rate of each place. Right: the same over "
        "that of an average place of the same lists, so that long lists with few clicks do not "
        "bend it: 2 means twice the clicks, and a flat line at 1 no position bias, or shuffled "
        "lists.",
        figure=lambda: figures.draw_lists(
            {name: split.candidates for name, split in log.splits.items()},
            {name: split.order for name, split in log.splits.items()},
        ),
    )


def _order(log: LogMeasures) -> Section:
    rows = [["clicked candidates stand before all others", "requests", "found", "by places alone"]]
    for name, split in log.splits.items():
        for clicks, of in ((1, "with any click"), (2, "with several clicks")):
            first = split.order.positives_first(clicks=clicks)
            if first.count:
                expected = f"{first.expected:.1%}" if clicks > 1 else ""
                shares = [f"{first.found:.1%}", expected]
                rows.append([f"{name} requests {of}", f"{first.count:,}", *shares])
    return Section(
        "Does the order of the list encode the label?",
        "If the share found is far above what click rates of places explain, the lists were sorted "
        "by label, and a feature of the place would be a leak. Only requests with several clicks "
        "can tell: one click on the first place may be position bias.",
        rows=rows,
    )


def _histories(log: LogMeasures) -> Section:
    titles = [f"{100 * share:.0f} %" for share in _QUANTILES]
    rows = [["behaviours", "empty", *titles, "clicked item touched before", "touched last"]]
    for name, split in log.splits.items():
        histories = split.histories
        clicks = histories.clicks
        touched = [
            _percent(histories.clicked_before, clicks),
            _percent(histories.clicked_last, clicks),
        ]
        rows.append([f"before {name} requests", *_quantiles(histories.lengths), *touched])
        if histories.gated.counts.any():
            gated = _quantiles(histories.gated)
            rows.append([f"behind the gate, {name} impressions", *gated, "", ""])
    return Section(
        "Histories",
        "Left: how many behaviours lie before a request; where a line begins at 0 is the share of "
        "empty ones, and a model that reads histories has nothing to read there. Right: how long "
        "ago the last one was. The gate's lines are of impressions whose user has a history.",
        figure=lambda: figures.draw_histories({n: s.histories for n, s in log.splits.items()}),
        rows=rows,
    )


def _gates(log: LogMeasures) -> Section:
    gate = log.schema.gate_feature()
    rows = [
        ["gate by", "values", "passes", "empty", "median behind it", "90 % behind it", "GAUC"],
    ]
    for level in log.gates:
        mark = MARK if level.name == gate else ""
        quantiles = [f"{level.passed.quantile(share).value:.0f}" for share in (0.5, 0.9)]
        shares = [f"{level.pass_rate:.1%}", f"{level.empty_rate:.1%}"]
        name = f"{mark}{level.name}"
        gauc = shown(level.ranked.gauc)
        rows.append([name, f"{level.values:,}", *shares, *quantiles, gauc])
    marked = f"The log's gate is '{gate}', in black." if gate else "The log has no category gate."
    return Section(
        "What a category gate lets through",
        "A coarse gate passes everything and says nothing, a fine one is empty; where it is empty "
        "less often for clicked candidates than for others, it tells them apart. GAUC ranks by the "
        f"number of behaviours behind the gate. {marked} Other features of an item are what the "
        "gate could go by instead; item_id is the finest.",
        figure=lambda: figures.draw_gates(log.gates, gate),
        rows=rows,
    )


def _ids(log: LogMeasures) -> Section:
    titles = [f"at {minimum}" for minimum in MINIMUM_COUNTS]
    rows = [["entity", "of", "all", "starter's min_count", "there", *titles]]
    curves, marks, same = {}, {}, []
    for entity, counts in log.coverage.counts.items():
        points = [log.coverage.at(entity, minimum) for minimum in MINIMUM_COUNTS]
        minimum = log.min_count(entity)
        there = None if minimum is None else log.coverage.at(entity, minimum)
        if points[0].rows == points[-1].rows and (there is None or there.rows == points[0].rows):
            same.append(entity)
            continue
        curves[entity] = points
        if there is not None:
            marks[entity] = there
        columns = {"test values": "of_test", "behaviours": "of_behaviours"}
        first = ["-", "-"] if there is None else [f"{minimum:,}", f"{MARK}{there.rows:,}"]
        rows.append(
            [entity, "rows", f"{len(counts):,}", *first, *(f"{point.rows:,}" for point in points)]
        )
        for of, name in columns.items():
            shares = [getattr(point, name) for point in points]
            if not math.isnan(shares[0]):
                marked = "-" if there is None else f"{MARK}{_share(getattr(there, name))}"
                rows.append(["", of, "", "", marked, *map(_share, shares)])
    drawn = sorted(curves, key=lambda entity: -len(log.coverage.counts[entity]))[:_MOST_DRAWN]

    def draw() -> str:
        marked = {entity: marks[entity] for entity in drawn if entity in marks}
        return figures.draw_coverage({entity: curves[entity] for entity in drawn}, marked)

    alike = f" At each of these counts the rows of {', '.join(same)} are the same." if same else ""
    return Section(
        "Ids with an embedding row of their own",
        "Ids that occur less often than min_count in training share a row. The diamonds and the "
        "yellow cells are the values of the dataset's starter.toml: where one stands near the "
        f"bottom, a module that reads ids has next to nothing to read.{alike}",
        figure=draw if drawn else None,
        rows=rows if curves else (),
    )


def _hashes(log: LogMeasures) -> list[Section]:
    rows = hash_rows(log.schema, log.summary)
    if not rows:
        return []
    return [
        Section(
            "Ids that would share a row by a hash",
            f"In each cell: {HASH_TITLE}. Frequent ids that collide are one id to the model; "
            "vocabularies, out-of-vocabulary rows and managed collision keep them apart.",
            rows=rows,
        )
    ]


def _ranking(log: LogMeasures) -> Section:
    rows = [["feature alone", "AUC on halves of the training split"]]
    leaks = log.summary.figures.get("leak", {})
    for name, figure in sorted(leaks.items(), key=lambda item: -item[1].value):
        rows.append([name, f"{figure.value:.4f}"])
    return Section(
        "What a single feature, or no training at all, achieves",
        "Each point ranks the candidates of test requests by one number, the better way round, or "
        "by the click rate that an id has in training; 0.5 is chance, and a point far to the right "
        "of all others is a leak until somebody can say why not. A model has to lie to the right "
        "of the orange ones. The table has the features of requests, too: AUC over all impressions "
        "by the click rate of their values.",
        figure=lambda: figures.draw_ranking(log.single, log.scorers),
        rows=rows if leaks else (),
    )


def _scorers(log: LogMeasures) -> Section:
    rows = [["untrained scorer", "AUC", "UAUC", "GAUC", "GAUC 95 % interval"]]
    for name, report in sorted(log.scorers.items(), key=lambda item: -item[1].gauc):
        values = [shown(value) for value in (report.auc, report.uauc, report.gauc)]
        low, high = report.gauc_interval
        rows.append([name, *values, f"{shown(low)} .. {shown(high)}"])
    truth = f" {TRUTH} knows the true click probabilities: nobody beats it."
    return Section(
        "Floors",
        "The untrained scorers that cdp_torchrec evaluate measures on the test split, where each "
        "is explained: a model below one of them has learnt nothing."
        + (truth if TRUTH in log.scorers else ""),
        rows=rows,
    )


def _quantiles(lengths: Lengths) -> list[str]:
    """Share of empty ones, then the quantiles."""
    empty = _percent(int(lengths.counts[:1].sum()), int(lengths.counts.sum()))
    return [empty, *(f"{lengths.quantile(share).value:,.0f}" for share in _QUANTILES)]


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
