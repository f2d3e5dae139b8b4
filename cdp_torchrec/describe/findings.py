"""What the figures of a log say to whoever will train on it: a table of rules, worst first."""

import math
from collections.abc import Iterator

from cdp_torchrec.data.plausibility import Finding
from cdp_torchrec.describe.measure import LogMeasures
from cdp_torchrec.describe.single_features import PLACE, by_click_rate
from cdp_torchrec.reference_scorers import TRUTH, place_features

_LEVELS = ("error", "warning", "note")
_FEW = 20
"""Shares of fewer requests prove nothing."""
_SUSPICIOUS_GAUC = 0.95
"""A feature that ranks as well alone knows more than what was known before the click."""
_OUTSTANDING_GAUC = 0.9
_SORTED = 0.9
"""Share of lists with several clicks that have the positives first."""
_EXPLAINED = 0.05
_DEVIATIONS = 4.0
"""The share is that far above what places explain, and so many of its standard deviations."""
_ORDER_GAUC = 0.02
"""So much better than the places that were logged, the order of the list ranks."""
_SAME_MOMENT = 0.01
_WITHIN_A_SECOND = 0.2
_CHANGED_RATE = 1.25
_FEW_ROWS = 0.1
"""Share of the test ids that rows of their own should cover at least."""
_EMPTY_GATE = 0.5
_BETTER_GATE = 0.02
"""So much better than the gate's, behaviours with another value of the candidate rank."""
_CHANCE = 0.52


def findings(log: LogMeasures) -> list[Finding]:
    """All that stands out, errors first, notes last."""
    rules = (_leaks, _order, _time, _rows, _rates, _gate, _lists, _floor)
    found = [*(finding for rule in rules for finding in rule(log)), *log.implausible]
    found += [
        Finding(doubt.level, f"{day}: {doubt.text}")
        for day, doubts in log.doubts.items()
        for doubt in doubts
    ]
    return sorted(found, key=lambda finding: _LEVELS.index(finding.level))


def _leaks(log: LogMeasures) -> Iterator[Finding]:
    for name, gauc in log.single.items():
        if gauc >= _SUSPICIOUS_GAUC:
            yield Finding(
                "warning",
                f"{name}: alone it ranks test requests with GAUC {gauc:.4f}. It was written after "
                "the click, or the log was made by it; leave it out (data.exclude_features) unless "
                "you can say why not.",
            )
        elif gauc >= _OUTSTANDING_GAUC:
            yield Finding(
                "note", f"{name}: alone it ranks test requests with GAUC {gauc:.4f}; is it a leak?"
            )


def _order(log: LogMeasures) -> Iterator[Finding]:
    for name, split in log.splits.items():
        first = split.order.positives_first(clicks=2)
        deviation = math.sqrt(first.expected * (1 - first.expected) / max(first.count, 1))
        above = max(_EXPLAINED, _DEVIATIONS * deviation)
        if first.found > _SORTED and first.found > first.expected + above:
            yield Finding(
                "warning",
                f"the order of the lists encodes the label: in {first.found:.1%} of the "
                f"{first.count:,} {name} requests with several clicks, all clicked candidates "
                f"stand first; places alone explain {first.expected:.1%}. Shuffle the candidates "
                "before the preparation.",
            )
    logged = [by_click_rate(place) for place in place_features(log.schema)]
    explained = max([0.5, *(log.single.get(name, 0.5) for name in logged)])
    order = log.single.get(PLACE, math.nan)
    if order > explained + _ORDER_GAUC:
        known = "the log has no place of a candidate as a feature (role context)"
        if logged:
            known = f"the places that were logged rank with {explained:.4f}"
        yield Finding(
            "warning",
            f"the order of the candidates alone ranks test requests with GAUC {order:.4f}, and "
            f"{known}. If that is the order that people saw, log it as a feature; if not, it "
            "encodes the label.",
        )


def _time(log: LogMeasures) -> Iterator[Finding]:
    for name, split in log.splits.items():
        histories = split.histories
        if histories.miscounted:
            yield Finding(
                "error",
                f"{histories.miscounted:,} of {histories.requests:,} {name} requests have another "
                "history_length than behaviours strictly before them: history and requests are "
                "not of one preparation.",
            )
        within, clicks = histories.clicked_last_within_1_s, histories.clicks
        if clicks >= _FEW and within > _WITHIN_A_SECOND * clicks:
            yield Finding(
                "warning",
                f"{within / clicks:.1%} of the {name} clicks are on the item that the user touched "
                "less than a second before the request: that behaviour may be the click itself.",
            )
    same = {n: s.histories.same_moment / s.histories.requests for n, s in log.splits.items()}
    if max(same.values()) > _SAME_MOMENT:
        yield Finding(
            "note",
            f"{same['train']:.1%} of the train and {same['test']:.1%} of the test requests have a "
            "behaviour of the same millisecond, often the click itself: it does not count as "
            "history, only what is strictly earlier does.",
        )


def _rates(log: LogMeasures) -> Iterator[Finding]:
    train, test = log.schema.splits["train"], log.schema.splits["test"]
    ratio = test.click_rate / train.click_rate
    if not 1 / _CHANGED_RATE <= ratio <= _CHANGED_RATE and min(train.clicks, test.clicks) >= _FEW:
        yield Finding(
            "warning",
            f"the click rate is {train.click_rate:.2%} in training and {test.click_rate:.2%} in "
            "the test split: log loss and calibration will suffer, rankings need not.",
        )


def _rows(log: LogMeasures) -> Iterator[Finding]:
    for entity, names in log.coverage.features.items():
        minimum = log.min_count(entity)
        if minimum is None:
            continue
        number = len(log.coverage.counts[entity])
        found, most = log.coverage.at(entity, minimum), log.coverage.at(entity, 1)
        if found.of_test < _FEW_ROWS and found.rows < most.rows:
            behaved = ""
            if not math.isnan(found.of_behaviours):
                behaved = f" and {found.of_behaviours:.1%} of the behaviours"
            yield Finding(
                "warning" if entity == log.schema.history.item_entity else "note",
                f"at the starter's min_count = {minimum}, {found.rows:,} of {number:,} ids of "
                f"entity '{entity}' have an embedding row of their own: {found.of_test:.1%} of the "
                f"test values of {_and(names)}{behaved}. With min_count = 1, {most.rows:,} rows "
                f"would have {most.of_test:.1%}.",
            )


def _gate(log: LogMeasures) -> Iterator[Finding]:
    gate = log.schema.gate_feature()
    for level in log.gates:
        if level.name == gate and level.impressions.sum() >= _FEW:
            yield Finding(
                "warning" if level.empty_rate > _EMPTY_GATE else "note",
                f"the category gate '{gate}' lets {level.pass_rate:.1%} of a history through, "
                f"nothing at all for {level.empty_rate:.1%} of the test impressions whose user has "
                "a history.",
            )
    if gate is None and log.gates:
        yield Finding(
            "note", "the log has no category of behaviours, so that the category gate is off."
        )
    yield from _better_gate(log, gate)


def _better_gate(log: LogMeasures, gate: str | None) -> Iterator[Finding]:
    ranked = {level.name: level.ranked.gauc for level in log.gates if level.name != "item_id"}
    ranked = {name: gauc for name, gauc in ranked.items() if not math.isnan(gauc)}
    best = max(ranked, key=lambda name: ranked[name], default=None)
    now = ranked.get(gate or "", 0.5)
    if best is not None and best != gate and ranked[best] > now + _BETTER_GATE:
        without = f", that with its '{gate}', the gate, {now:.4f}" if gate else ""
        yield Finding(
            "warning",
            f"the number of behaviours with the candidate's '{best}' ranks test requests with GAUC "
            f"{ranked[best]:.4f}{without}. Prepare the log with '{best}' as the category of "
            "behaviours, at least to compare.",
        )


def _lists(log: LogMeasures) -> Iterator[Finding]:
    test, requests = log.splits["test"], log.schema.splits["test"].requests
    yield Finding(
        "note",
        f"GAUC is measured on {test.both_labels:,} of {requests:,} test requests, those that have "
        "clicked and other candidates.",
    )


def _floor(log: LogMeasures) -> Iterator[Finding]:
    reached = {f"the untrained scorer {n}": r.gauc for n, r in log.scorers.items() if n != TRUTH}
    reached |= log.single
    known = {name: gauc for name, gauc in reached.items() if not math.isnan(gauc)}
    if not known:
        return
    best = max(known, key=lambda name: known[name])
    if known[best] < _CHANCE:
        yield Finding("note", "no untrained scorer and no feature alone is better than chance.")
    else:
        yield Finding("note", f"a model has to beat GAUC {known[best]:.4f}, that of {best}.")


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
