"""Which file of a log holds its requests, and which ones attributes or behaviours: guesses.

And what a column of the log belongs to: its requests, or their candidates.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cdp_torchrec.config.keys import toml_value
from cdp_torchrec.data.prepare.mapped.guessed_clicks import clicks, guess_action, guess_label
from cdp_torchrec.data.prepare.mapped.guessed_roles import (
    Guess,
    guess_clicked,
    guess_item,
    guess_request,
    guess_request_of_lists,
    guess_time,
    guess_user,
    is_constant,
    item_separator,
    known_later,
    leaks,
    numbers_rows,
    oddly_written,
    said_unread_times,
)
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn, groups
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedFile
from cdp_torchrec.data.schema import DatasetError

_ALIKE = 0.3
_MANY = 20
_WORDS = ({"true", "false"}, {"True", "False"})  # parquet's type for them, and as Python prints it


@dataclass
class GuessedLog:
    """What is guessed of the file with the requests."""

    file: SniffedFile
    user: Guess
    item: Guess
    time: Guess
    rows: str = "impression"
    label: tuple[Guess, str] | None = None
    clicked: Guess | None = None
    action: Guess | None = None
    separator: str | None = None
    request: tuple[SniffedColumn, ...] = ()
    request_why: str = ""
    used: set[str] = field(default_factory=set)
    """Columns that have a role."""


@dataclass
class Attributes:
    """A file with a row for each item or user."""

    name: str
    file: SniffedFile
    by: str
    """"item" or "user"."""
    key: SniffedColumn


def find_log(files: Sequence[SniffedFile]) -> GuessedLog:
    """The file with the requests."""
    missing = []
    found: list[GuessedLog] = []
    for file in files:
        user, item, time = guess_user(file), guess_item(file), guess_time(file)
        roles: dict[str, object] = {"user": user, "item": item, "time": time}
        if user and item and time:
            log = _with_labels(GuessedLog(file, user, item, time))
            if log.rows != "action" or not (item.column.is_list or log.separator):
                found.append(log)
                continue
            roles["click in the lists"] = None
        lacking = " and no ".join(role for role, guess in roles.items() if guess is None)
        unread = f" (not read: {', '.join(file.unread[:20])})" if file.unread else ""
        oddly = "" if time else said_unread_times(file)
        missing.append(f"{file.path}: no {lacking} among {list(file.columns)[:20]}{unread}{oddly}")
    if not found:
        raise DatasetError(
            f"no file looks like a log with user, item and time: {missing[0]}. Names such as "
            "user_id, uid, customer, item_id, product, article, sku and values that are moments "
            "are recognised; a mapping can be written by hand as well, `prepare_data generic "
            "--help` says how"
        )
    return max(found, key=lambda log: (log.rows != "action", log.file.num_rows))


def _with_labels(log: GuessedLog) -> GuessedLog:
    item = log.item.column
    log.separator = item_separator(item)
    if item.is_list or log.separator:
        log.rows = "request"
        label = guess_label(log.file)
        lengths = _lengths(item, log.separator)
        aligned = [
            c
            for c in log.file.columns.values()
            if c is not item and _lengths(c, log.separator) == lengths
        ]
        binary = [c for c in aligned if elements(c, log.separator) <= {"0", "1", "0.0", "1.0"}]
        words = [c for c in aligned if elements(c, log.separator) in _WORDS]
        if binary:
            guess = Guess(binary[0], "lists of 0 and 1, as long as those of the items")
            log.label = guess, "above = 0"
        elif words:
            yes = toml_value(sorted(elements(words[0], log.separator))[-1:])
            guess = Guess(words[0], "lists of yes and no, as long as those of the items")
            log.label = guess, f"one_of = {yes}"
        elif label is None or label[0].column.is_number:
            log.clicked = guess_clicked(log.file)
    else:
        log.label = guess_label(log.file)
    if log.label is None and log.clicked is None:
        log.rows = "action"
        log.action = guess_action(log.file)
    if log.rows == "impression":
        log.request, log.request_why = guess_request(log.file, log.user.column, log.time.column)
    if log.rows == "request":
        log.request, log.request_why = guess_request_of_lists(log.file), "one row each"
    guesses = [log.user, log.item, log.time, log.clicked, log.action, log.label and log.label[0]]
    log.used = {guess.column.name for guess in guesses if guess} | {c.name for c in log.request}
    return log


def _parts(column: SniffedColumn, separator: str | None) -> Iterator[list[Any]]:
    for value in column.values:
        if isinstance(value, list):
            yield value
        else:
            yield value.split(separator) if value is not None and separator else [value]


def _lengths(column: SniffedColumn, separator: str | None) -> list[int]:
    return [len(parts) for parts in _parts(column, separator)]


def elements(column: SniffedColumn, separator: str | None) -> set[str]:
    """All values in the lists of a column."""
    return {element for parts in _parts(column, separator) for element in parts}


def find_attributes(log: GuessedLog, files: Sequence[SniffedFile]) -> list[Attributes]:
    """The files with a row for each item or user, by names and by the values of their keys."""
    known = _known(log)
    found = []
    for file in files:
        keys = [
            c for c in file.columns.values() if not c.is_list and c.num_distinct == file.num_rows
        ]
        actions = find_behaviours(file)
        if actions and _alike(actions.item.column, "item", log, known["item"]) > _ALIKE:
            # Another column that is unique numbers the actions: it has the ids of nobody.
            keys = [c for c in keys if c in (actions.user.column, actions.item.column)]
        scores = [
            (_alike(column, by, log, known[by]), by, column) for column in keys for by in known
        ]
        if not scores:
            continue
        score, by, column = max(scores, key=lambda scored: scored[0])
        if score > _ALIKE:
            found.append(Attributes(table_name(file), file, by, column))
    return found


def _known(log: GuessedLog) -> dict[str, set[str]]:
    """The items and users of the log."""
    return {
        "item": elements(log.item.column, log.separator),
        "user": elements(log.user.column, None),
    }


def _alike(column: SniffedColumn, by: str, log: GuessedLog, known: set[str]) -> float:
    """How much a column looks like the key of items or users."""
    named = (log.item if by == "item" else log.user).column.name == column.name
    values = set(column.there)
    return named + len(values & known) / max(min(len(known), len(values)), 1)


def why_no_attributes(log: GuessedLog, file: SniffedFile) -> str:
    """Why a file has no attributes of items or users, as far as can be seen.

    Args:
        log: the file with the requests.
        file: one in which `find_attributes` found no key, or that has no feature.
    """
    known = _known(log)
    keys = [
        (_alike(column, by, log, known[by]), by, column)
        for column in file.columns.values()
        for by in known
        if not column.is_list
    ]
    score, by, key = max(keys, key=lambda scored: scored[0], default=(0.0, "", None))
    if key is None or score <= _ALIKE:
        return "no column has the items or users of the log"
    places: dict[str, int] = {}
    for place, value in enumerate(key.values):
        if value is None:
            return f"each row needs its {by}, but {key.name!r} is empty in {file.row(place)}"
        if value in places:
            return (
                f"each {by} needs one row, but {key.name!r} has {value!r} in "
                f"{file.row(places[value])} and in {file.row(place)}"
            )
        places[value] = place
    return "none of its columns is a feature"


def find_behaviours(file: SniffedFile) -> GuessedLog | None:
    """The columns of a file with actions; None: it has none."""
    user, item, time = guess_user(file), guess_item(file), guess_time(file)
    if not (user and item and time) or item.column.is_list or item_separator(item.column):
        return None
    used = {guess.column.name for guess in (user, item, time)}
    return GuessedLog(file, user, item, time, action=guess_action(file), used=used)


def rows_of_requests(log: GuessedLog) -> list[list[int]]:
    """Rows of the log that belong together: those of a request, or the actions on an item."""
    if log.rows == "impression":
        return list(groups(log.request or (log.user.column, log.time.column)))
    return list(groups([log.item.column])) if log.rows == "action" else []


def is_of_candidate(log: GuessedLog, column: SniffedColumn, rows: Sequence[Sequence[int]]) -> bool:
    """Whether a column says something of a candidate rather than of its request."""
    if log.rows == "request":
        aligned = column.is_list or (log.separator and column.separator() == log.separator)
        lengths = _lengths(log.item.column, log.separator)
        return bool(aligned) and _lengths(column, log.separator) == lengths
    if log.rows == "action":  # what does not change with the action belongs to the item
        return is_constant(column, rows)
    if len(rows) > 0.9 * log.file.num_rows:  # requests of one row: the same
        return is_constant(column, list(groups([log.item.column])))
    return not is_constant(column, rows)


def uneven(log: GuessedLog, column: SniffedColumn) -> str | None:
    """Where the lists of a column are not as long as those of the items; None: nowhere."""
    item = log.item.column
    pairs = zip(_lengths(column, log.separator), _lengths(item, log.separator), strict=True)
    for place, (here, there) in enumerate(pairs):
        if here != there:
            return f"{log.file.row(place)} has {here}, and {there} in {item.name!r}"
    return None


def doubts_of(
    log: GuessedLog, columns: Sequence[SniffedColumn], rows: Sequence[Sequence[int]]
) -> dict[str, str]:
    """Columns of the log that should be no features, each with the reason."""
    doubts = {c.name: why for c in columns if (why := known_later(c))}
    doubts |= {c.name: "it is a moment" for c in columns if c.moment()}
    doubts |= {c.name: why for c in columns if (why := oddly_written(c) or numbers_rows(c))}
    if log.rows != "action":
        doubts |= {c.name: "each request has its own" for c in columns if _is_of_one(log, c, rows)}
    if log.rows == "action":
        at_random = "a log of actions: it belongs to the action, not to what was shown"
        doubts |= {c.name: at_random for c in columns if not is_of_candidate(log, c, rows)}
    if log.time.column.is_days:
        of_day = (
            f"it is a time of day, which the moments in {log.time.column.name!r} lack: write both "
            "into one column, or all that a user does on a day happens at once"
        )
        doubts |= {c.name: of_day for c in columns if c.is_time_of_day}
    if log.rows == "impression" and log.label:
        request = np.zeros(log.file.num_rows, dtype=np.int64)
        for number, group in enumerate(rows):
            request[group] = number
        guess, rule = log.label
        plain = [c for c in columns if not c.is_list and c.name not in doubts]
        for name, auc in leaks(plain, clicks(guess.column, rule), request).items():
            doubts[name] = f"alone it tells the clicks of the sample with AUC {auc:.3f}"
    return doubts


def _is_of_one(log: GuessedLog, column: SniffedColumn, rows: Sequence[Sequence[int]]) -> bool:
    """Whether a column of the requests has another id in nearly every one of them."""
    if column.is_list or column.is_number or column.separator():
        return False
    num_requests = len(rows) if log.rows == "impression" else log.file.num_rows
    if is_of_candidate(log, column, rows):
        return False
    return num_requests > _MANY and column.num_distinct > 0.9 * num_requests


def table_name(file: SniffedFile) -> str:
    """A name for the table of a file."""
    return re.sub(r"\W+", "_", file.path.name.partition(".")[0]).strip("_") or "log"
