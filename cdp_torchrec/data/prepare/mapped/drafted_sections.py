"""Sections of a drafted mapping but its features: what a guess is in TOML, with its reason."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cdp_torchrec.config.keys import toml_key, toml_value
from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.mapped.guessed_clicks import done, shown, unread_labels
from cdp_torchrec.data.prepare.mapped.guessed_log import Attributes, GuessedLog, table_name
from cdp_torchrec.data.prepare.mapped.guessed_roles import (
    Guess,
    guess_category,
)
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedFile

DAY_S = 86_400.0
_EXAMPLES = 3


def category_of(log: GuessedLog) -> SniffedColumn | None:
    """The column of a file that a category gate could go by."""
    return guess_category([c for name, c in log.file.columns.items() if name not in log.used])


def table_lines(file: SniffedFile, folder: Path, attributes: Sequence[Attributes]) -> list[str]:
    """How a file is read.

    Args:
        file: the table.
        folder: that its path is told from.
        attributes: tables of items and users; it may be one of them.
    """
    places = [str(path.resolve().relative_to(folder)) for path in (file.path, *file.more)]
    lines = ["", *comment(f"{column}, which is not read." for column in file.unread)]
    lines += [f"[tables.{toml_key(table_name(file))}]", f"files = {toml_value(places)}"]
    if file.form is None:
        lines.append('format = "parquet"')
    else:
        lines.append(f"delimiter = {toml_value(file.form.delimiter)} # cuts all lines alike")
        if file.form.names:
            lines += comment(["The first line looks like values: name the columns as you like."])
            lines.append(f"columns = {toml_value(list(file.form.names))}")
        if file.form.encoding != "utf-8":
            lines += comment([f"Not UTF-8; {file.form.encoding} is a guess, gbk is another one."])
            lines.append(f"encoding = {toml_value(file.form.encoding)}")
        if file.form.quote is None:
            lines.append('quote = "none" # quotation marks stand inside of cells')
    if file.missing:
        lines.append(f"missing = {toml_value(list(file.missing))} # such cells occur")
    for table in attributes:
        if table.file is file:
            lines.append(f"by = {toml_value(table.by)} # each value of the key occurs once")
            lines.append(f"key = {toml_value(table.key.name)}")
    return lines


def log_lines(log: GuessedLog) -> list[str]:
    """Who was shown what, when, and what was clicked."""
    why = {
        "impression": "each row has one item and says whether it was clicked",
        "request": "the items of a row are a list",
        "action": "nothing says what was shown and not clicked: negatives are drawn",
    }
    lines = ["", "[log]", f"table = {toml_value(table_name(log.file))}"]
    if log.rows == "action":
        lines += comment(
            f"READ THIS: {c.name!r} is called a label, and is neither numbers nor yes and no: "
            f"{described(c)}. Is each row a candidate that was shown? Then write rows = "
            '"impression" and [log.label] with one_of.'
            for c in unread_labels(log.file)
            if log.action is None or c is not log.action.column
        )
        lines += _said_shown(log)
    lines += [
        f"rows = {toml_value(log.rows)} # {why[log.rows]}",
        f"user = {_guessed(log.user)}",
        f"item = {_guessed(log.item)}",
    ]
    if log.rows != "action":
        names = [column.name for column in log.request]
        lines.append(f"request = {toml_value(names)} # {log.request_why}")
    if log.separator:
        lines.append(f"separator = {toml_value(log.separator)} # between the items of a list")
    if log.clicked:
        lines.append(f"clicked = {toml_value(log.clicked.column.name)} # {log.clicked.why}")
    time = log.time.column
    lines += ["", f"[log.time] # {log.time.why}: {_span(time)}{_if_empty(time)}", *_time(time)]
    if log.label:
        guess, rule = log.label
        lines += ["", f"[log.label] # {guess.why}: {described(guess.column)}"]
        lines += [f"column = {toml_value(guess.column.name)}", rule]
    elif log.action and (actions := done(log.action.column)):
        lines += ["", "[log.label] # the most frequent action is what is predicted"]
        lines += [
            f"column = {toml_value(log.action.column.name)}",
            f"one_of = [{toml_value(actions[0])}]",
        ]
    if log.rows == "action":
        lines += ["", "[sampling] # nobody has seen such lists: they compare models, no more"]
        lines += ["num_negatives = 9", 'weights = "popularity"', "seed = 0"]
    return lines


def _said_shown(log: GuessedLog) -> list[str]:
    """What to do about rows that say what was shown: as actions they are left out."""
    if not log.action or not (seen := shown(log.action.column)):
        return []
    clicked = toml_value(done(log.action.column)[:1])
    return comment(
        [
            f"READ THIS: {log.action.column.name!r} has {seen}, which say what was shown. Such "
            "rows are not read here. Has each candidate",
            'one row, clicked or not? Then write rows = "impression" and [log.label] with one_of = '
            f"{clicked}. Has it a second row for its click? Then join the two first.",
        ]
    )


def behaviour_lines(log: GuessedLog, others: dict[str, GuessedLog], gate: str | None) -> list[str]:
    """What users did.

    Args:
        log: whose positives are behaviours.
        others: more files with behaviours, by their tables' names.
        gate: the feature that is the gate.
    """
    if log.rows == "action":
        lines = ["", "[behaviours.action] # all rows of the log", *_own(table_name(log.file), log)]
    else:
        lines = ["", "[behaviours.click] # the positives of the log"]
    for name, other in others.items():
        category = category_of(other)
        lines += ["", f"[behaviours.{toml_key(name)}]", *_own(name, other)]
        if category and gate:
            lines.append(f"category = {toml_value(category.name)} # by its name")
    return lines


def _own(table: str, log: GuessedLog) -> list[str]:
    lines = [
        f"table = {toml_value(table)}",
        f"user = {toml_value(log.user.column.name)} # {log.user.why}",
        f"item = [{toml_value(log.item.column.name)}] # {log.item.why}",
    ]
    if log.action:
        lines.append(f"action = {toml_value(log.action.column.name)} # {log.action.why}")
        if shown(log.action.column):
            name, wanted = log.action.column.name, done(log.action.column)
            only = f"only = {{column = {toml_value(name)}, one_of = {toml_value(wanted)}}}"
            lines.append(f"{only} # all others are left out: are all named that users did?")
    time = ", ".join(line.partition(" # ")[0] for line in _time(log.time.column))
    return [*lines, f"time = {{{time}}} # {_span(log.time.column)}"]


def _time(column: SniffedColumn) -> list[str]:
    found = column.moment()
    assert found is not None
    unit, form = found
    lines = [f"column = {toml_value(column.name)}", f"unit = {toml_value(unit)}"]
    if form:
        lines.append(f"format = {toml_value(form)}")
    if unit in ("text", "timestamp") and not column.names_zones:
        why = 'nothing says which: "+08:00" is China; or zone = "Europe/Berlin"'
        lines.append(f'utc_offset = "+00:00" # {why}')
    return lines


def window_lines(log: GuessedLog) -> list[str]:
    """Days within which nearly all of the log lies, if some moments are far from them."""
    seconds = np.array(log.time.column.as_seconds())
    seconds = seconds[~np.isnan(seconds)]
    low, high = np.quantile(seconds, [0.01, 0.99])
    if np.ptp(seconds) <= 3 * max(high - low, DAY_S):
        return []
    days = [datetime.fromtimestamp(t, UTC).date() for t in (low, high + DAY_S)]
    return [
        "",
        f"[window] # 98 % of the moments lie within; all of them run from {_span(log.time.column)}",
        f'start = "{days[0]}"',
        f'end = "{days[1]}"',
    ]


def _span(column: SniffedColumn) -> str:
    seconds = np.array(column.as_seconds())
    seconds = seconds[~np.isnan(seconds)]
    first, last = (utc(round(1000 * t)) for t in (seconds.min(), seconds.max()))
    return f"{first} to {last}"


def _guessed(guess: Guess) -> str:
    column = guess.column
    return f"{toml_value(column.name)} # {guess.why}: {described(column)}{_if_empty(column)}"


def _if_empty(column: SniffedColumn) -> str:
    """What to do about a column that every row of the log needs, if some have nothing there."""
    empty = len(column.values) - len(column.there)
    rule = f"only = {{column = {toml_value(column.name)}, filled = true}}"
    return f"; EMPTY in {empty} of {len(column.values)} rows, refused without {rule}" * bool(empty)


def described(column: SniffedColumn) -> str:
    """A column in words, on one line."""
    values = list(dict.fromkeys(str(value) for value in column.there))
    shown = ", ".join(repr(v[:20])[1:-1] for v in values[:_EXAMPLES])
    return f"{column.num_distinct:,} values, such as {shown}"


def comment(texts: Iterable[str]) -> list[str]:
    """Comments, a line each."""
    return [f"# {text}" for text in texts]
