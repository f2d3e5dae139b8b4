"""Guesses at which column of a log's file says what was clicked, or done."""

import tomllib
from collections import Counter

import numpy as np

from cdp_torchrec.config.keys import toml_value
from cdp_torchrec.data.prepare.mapped.guessed_roles import (
    CLICKED,
    Guess,
    by_name,
    first_of,
    guess_time,
    is_unnamed,
)
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedFile

_LABEL = r"^(is_?)?(click|clicked|clk|label|labels|target|clicks|click_cnt|click_count)$"
_ONES = {"1", "1.0"}
_YES, _NO = {"true", "t", "yes", "y"}, {"false", "f", "no", "n"}
_EARLIER = r"(^|_)(last|latest|recent|prev|previous)_"
_RATING = r"^(rating|score|stars)s?$"
_ACTION = r"behaviou?r|action|event|btag|^type$"
_SHOWN = {"impression", "impressions", "imp", "show", "shown", "exposure", "expose", "display"}
_VERBS = {"pv", "view", "click", "cart", "fav", "buy", "purchase", "order", "like", "play", "share"}


def guess_action(file: SniffedFile) -> Guess | None:
    """The column with what was done."""
    for column in file.columns.values():
        values = {str(value) for value in column.there[:5000]}
        if not column.is_list and 1 < len(values) <= 20 and values & _VERBS:
            return Guess(column, f"its values are {', '.join(sorted(values)[:5])}")
    texts = [c for c in by_name(file, _ACTION) if not (c.is_list or c.is_number or c.moment())]
    return first_of([c for c in texts if 1 < c.num_distinct <= 20 and done(c)], "by its name")


def guess_label(file: SniffedFile) -> tuple[Guess, str] | None:
    """The column with the clicks, and the rule for them in TOML."""
    time = guess_time(file)
    for column in by_name(file, _LABEL):
        if time and column is time.column:
            continue  # a log of clicks
        if _tells_by_being_there(column) or _says_yes_or_nothing(column):
            return Guess(column, "by its name; it is empty where nobody clicked"), "filled = true"
        if column.is_number:
            return Guess(column, "by its name"), "above = 0"
        values = {str(value) for value in column.there}
        yes = {value for value in values if value.strip().lower() in _YES}
        no = {value for value in values if value.strip().lower() in _NO}
        if yes and no and yes | no == values:
            return Guess(column, "by its name"), f"one_of = {toml_value(sorted(yes))}"
    earlier = by_name(file, _EARLIER)
    for column in by_name(file, CLICKED):
        is_time = time is not None and column is time.column
        if _tells_by_being_there(column) and not is_time and column not in earlier:
            return Guess(column, "a moment where somebody clicked, else empty"), "filled = true"
    for column in by_name(file, _RATING):
        if column.is_number:
            return Guess(column, "by its name; 4 and more count as a click"), "above = 3"
    if any(map(is_unnamed, file.columns.values())):
        for column in file.columns.values():
            values = {float(v) for v in column.there} if column.is_number else set()
            if 1 < len(values) <= 10 and max(values) <= 10:
                above = "above = 0" if max(values) == 1 else "above = 3"
                return Guess(column, f"few numbers, up to {max(values):g}"), above
    return None


def _tells_by_being_there(column: SniffedColumn) -> bool:
    """Whether a column has the moment of a click, and nothing without one."""
    return 0 < len(column.there) < len(column.values) and column.moment() is not None


def _says_yes_or_nothing(column: SniffedColumn) -> bool:
    values = {str(value).strip().lower() for value in column.there}
    return len(column.there) < len(column.values) and len(values) == 1 and values <= _ONES | _YES


def clicks(label: SniffedColumn, rule: str) -> np.ndarray:
    """Which rows are clicks by a rule of `guess_label`, bool [n]."""
    wanted = tomllib.loads(rule)
    if "filled" in wanted:
        return np.array([value is not None for value in label.values])
    if "one_of" in wanted:
        return np.array([value in wanted["one_of"] for value in label.values])
    return np.array([v is not None and float(v) > wanted["above"] for v in label.values])


def done(action: SniffedColumn) -> list[str]:
    """What a column of actions says that users did, most frequent first; not what they saw."""
    counts = Counter(sorted(map(str, action.there)))
    return [value for value, _ in counts.most_common() if value.strip().lower() not in _SHOWN]


def shown(action: SniffedColumn) -> list[str]:
    """What a column of actions says that users saw."""
    return sorted({str(value) for value in action.there} - {*done(action)})


def unread_labels(file: SniffedFile) -> list[SniffedColumn]:
    """Columns that are called a label, of a file in which `guess_label` finds none."""
    return by_name(file, _LABEL)
