"""A draft of the mapping of a log, made by looking at its files: a comment on every guess."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cdp_torchrec.config.keys import toml_key, toml_value
from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.mapped.guessed_log import (
    Attributes,
    GuessedLog,
    doubts_of,
    elements,
    find_attributes,
    find_behaviours,
    find_log,
    is_of_candidate,
    rows_of_requests,
    table_name,
    uneven,
    why_no_attributes,
)
from cdp_torchrec.data.prepare.mapped.guessed_roles import (
    Guess,
    guess_category,
    guess_role,
    is_number,
    is_place,
    oddly_written,
    unread_labels,
)
from cdp_torchrec.data.prepare.mapped.mapping_config import RESERVED_FEATURES
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedColumn, SniffedFile, sniff
from cdp_torchrec.data.schema import DatasetError

NOT_USED = "Not used:"
"""Begins the comment on a file of which nothing is read."""
_EXAMPLES = 3
_HOUR_S, _DAY_S = 3_600.0, 86_400.0
_KNOWN_LATE = (
    "READ THIS: known only after ranking: leave it out with data.exclude_features, or score with a "
    "constant."
)
_NO_IDS = "numbers, which are no ids: write integers or text"


def draft_mapping(paths: Sequence[Path], *, mapping: str) -> str:
    """The draft, as TOML.

    Args:
        paths: files of one log: with the requests, and with attributes or behaviours if there are.
        mapping: name of the file in which the draft will stand.

    Raises:
        DatasetError: a file cannot be read, or none has a user, an item and a time.
    """
    files = _gathered([sniff(path) for path in paths])
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    log = find_log(files)
    others = [file for file in files if file is not log.file]
    attributes = find_attributes(log, others)
    gate, features = _features(log, attributes)
    attributes = [a for a in attributes if f"table = {toml_value(a.name)}" in features]
    rest = [file for file in others if file not in [a.file for a in attributes]]
    needs_category = gate is not None and not any(
        guess_category([c]) for a in attributes if a.by == "item" for c in a.file.columns.values()
    )
    behaviours, unused = _sorted_out(log, rest, needs_category=needs_category)
    for found in (log, *behaviours.values()):
        _check_ids(found)
    name = table_name(log.file)
    command = ["cdp_torchrec", "prepare_data", "generic", mapping]
    command += ["--input", str(folder), "--output", f"data/{name}"]
    lines = [
        f"# A draft, made by looking at the first rows of {len(files)} file(s). A comment says why "
        "each guess",
        "# was made: read them all. Then",
        f"#   {shlex.join(command)}",
        "",
        f"name = {toml_value(name)}",
        f"source = {toml_value(log.file.path.name)} # where the log came from, in your words",
        *([f"category = {toml_value(gate)} # the gate of the history"] if gate else []),
    ]
    for file in [log.file, *(a.file for a in attributes), *(b.file for b in behaviours.values())]:
        lines += _table(file, folder, attributes)
    lines += _comment(f"{NOT_USED} {path}: {reason}" for path, reason in unused.items())
    lines += [*_log(log), *features]
    lines += _behaviours(log, behaviours, gate)
    lines += _window(log)
    lines += ["", "[split]", "test_share = 0.2 # the latest fifth; or test_from = a date"]
    return "\n".join(lines) + "\n"


def _sorted_out(
    log: GuessedLog, files: Sequence[SniffedFile], *, needs_category: bool
) -> tuple[dict[str, GuessedLog], dict[Path, str]]:
    """Files with behaviours by their tables' names, and why each other one is not used."""
    behaviours, unused = {}, {}
    for file in files:
        found = find_behaviours(file)
        if found is None:
            reason = why_no_attributes(log, file)
            unused[file.path] = f"{reason}; behaviours need a user, an item and a time"
        elif needs_category and _category(found) is None:
            unused[file.path] = "no column has the category, which only the log has"
        else:
            behaviours[table_name(file)] = found
    return behaviours, unused


def _category(log: GuessedLog) -> SniffedColumn | None:
    return guess_category([c for name, c in log.file.columns.items() if name not in log.used])


def _check_ids(log: GuessedLog) -> None:
    columns = [guess.column for guess in (log.user, log.item, log.action) if guess]
    for column in (*columns, *log.request):
        if column.is_floating:
            raise DatasetError(f"{log.file.path}: {column.name!r} has floating point {_NO_IDS}")


# --- features ------------------------------------------------------------------------------------


def _gathered(files: Sequence[SniffedFile]) -> list[SniffedFile]:
    """Files with the same columns are parts of one table.

    Raises:
        DatasetError: two tables would have the same name.
    """
    found: list[SniffedFile] = []
    for file in files:
        same = [f for f in found if [*f.columns] == [*file.columns] and f.form == file.form]
        if same:
            found[found.index(same[0])] = replace(same[0], more=(*same[0].more, file.path))
        elif table_name(file) in map(table_name, found):
            raise DatasetError(f"{file.path}: another file has this name, but other columns")
        else:
            found.append(file)
    return found


def _features(log: GuessedLog, attributes: Sequence[Attributes]) -> tuple[str | None, list[str]]:
    """Name of the feature that is the gate, and the lines of all."""
    own = [c for name, c in log.file.columns.items() if name not in log.used]
    rows = rows_of_requests(log)
    candidate = [c for c in own if is_of_candidate(log, c, rows)]
    doubts = doubts_of(log, own, rows)
    tables = {a.name: [c for c in a.file.columns.values() if c is not a.key] for a in attributes}
    items = [c for a in attributes if a.by == "item" for c in tables[a.name]]
    gate = guess_category([*[c for c in candidate if c.name not in doubts], *items])
    lines: list[str] = []
    names = set(RESERVED_FEATURES)
    sources: list[tuple[SniffedColumn, Attributes | None]] = [(c, None) for c in own]
    sources += [(c, a) for a in attributes for c in tables[a.name]]
    gate_name = None
    for column, table in sources:
        name = "category_id" if column is gate else _free_name(column.name, names)
        names.add(name)
        of_candidate = column in candidate or (table is not None and table.by == "item")
        written = _feature(name, column, table, log, of_candidate=of_candidate)
        reason = oddly_written(column) if table else doubts.get(column.name)
        if column.is_floating and 'kind = "number"' not in written:
            reason = reason or _no_ids(log, column)
        if reason:
            lines += ["", *_comment([f"{column.name!r} is left out: {reason}"])]
            lines += [f"# {line}" for line in written]
        elif column.num_distinct <= 1:
            lines += ["", *_comment([f"{column.name!r} has one value, so that it says nothing"])]
        else:
            gate_name = name if column is gate else gate_name
            is_known_late = column in candidate and is_place(column)
            lines += ["", *(_comment([_KNOWN_LATE]) if is_known_late else []), *written]
    lines += _hour(log, names)
    return gate_name, lines


def _no_ids(log: GuessedLog, column: SniffedColumn) -> str:
    """Why floating point numbers that are no number of each request or candidate are no feature."""
    if not column.is_list:
        return f"floating point {_NO_IDS}"
    uneven_row = uneven(log, column) if log.rows == "request" else None
    if uneven_row:
        return f"lists of numbers that are not one for each candidate: {uneven_row}"
    return f"lists of floating point {_NO_IDS}"


def _feature(
    name: str,
    column: SniffedColumn,
    table: Attributes | None,
    log: GuessedLog,
    *,
    of_candidate: bool,
) -> list[str]:
    is_element = table is None and of_candidate and log.rows == "request"
    separator = None if is_element else _separator(column, of_candidate=of_candidate)
    several = (column.is_list or separator is not None) and not is_element
    values = sorted(elements(column, log.separator) - {None}) if is_element else column.there
    plain = SniffedColumn(column.name, values)
    kind = "number" if is_number(plain) else "id"
    if several:
        kind = "id" if of_candidate else "ids"
    level = "candidate" if of_candidate else "request"
    role = guess_role(name, of_candidate=of_candidate, of_user=bool(table and table.by == "user"))
    lines = [
        f"[features.{name}] # {_described(column)}",
        f"role = {toml_value(role)}",
        f"level = {toml_value(level)}",
        f"kind = {toml_value(kind)}",
    ]
    if several and of_candidate:
        lines[-1] += " # the first of several: bags are of level request only"
        if separator:
            kept = len({value.partition(separator)[0] for value in column.there})
            lines[-1] += f"; {column.num_distinct:,} values become {kept:,}"
    if table:
        lines.append(f"table = {toml_value(table.name)}")
    if name != column.name:
        lines.append(f"column = {toml_value(column.name)}")
    if separator:
        lines.append(f"separator = {toml_value(separator)}")
    return lines


def _separator(column: SniffedColumn, *, of_candidate: bool) -> str | None:
    """What stands between several ids; not what stands in the name of one, as in Women Shoes."""
    separator = column.separator()
    if separator not in (" ", "_") or not of_candidate:
        return separator
    parts = {part for value in column.there for part in value.split(separator)}
    return separator if all(re.search(r"\d", part) for part in parts) else None


def _hour(log: GuessedLog, names: set[str]) -> list[str]:
    seconds = np.array(log.time.column.as_seconds())
    seconds = seconds[~np.isnan(seconds)]
    if (
        "hour" in names
        or np.ptp(seconds) < _DAY_S
        or np.all(seconds % _DAY_S == seconds[0] % _DAY_S)
    ):
        return []
    return [
        "",
        "[features.hour] # of the day; in local time if time.utc_offset says so",
        'role = "context"',
        'level = "request"',
        'kind = "id"',
        'derive = "hour"',
    ]


# --- lines ---------------------------------------------------------------------------------------


def _table(file: SniffedFile, folder: Path, attributes: Sequence[Attributes]) -> list[str]:
    places = [str(path.resolve().relative_to(folder)) for path in (file.path, *file.more)]
    lines = ["", *_comment(f"{column}, which is not read." for column in file.unread)]
    lines += [f"[tables.{toml_key(table_name(file))}]", f"files = {toml_value(places)}"]
    if file.form is None:
        lines.append('format = "parquet"')
    else:
        lines.append(f"delimiter = {toml_value(file.form.delimiter)} # cuts all lines alike")
        if file.form.names:
            lines += _comment(["The first line looks like values: name the columns as you like."])
            lines.append(f"columns = {toml_value(list(file.form.names))}")
        if file.form.encoding != "utf-8":
            lines += _comment([f"Not UTF-8; {file.form.encoding} is a guess, gbk is another one."])
            lines.append(f"encoding = {toml_value(file.form.encoding)}")
        if file.form.quote is None:
            lines.append('quote = "none" # quotation marks stand inside of cells')
        if file.form.missing:
            lines.append(f"missing = {toml_value(list(file.form.missing))} # such cells occur")
    for table in attributes:
        if table.file is file:
            lines.append(f"by = {toml_value(table.by)} # each value of the key occurs once")
            lines.append(f"key = {toml_value(table.key.name)}")
    return lines


def _log(log: GuessedLog) -> list[str]:
    why = {
        "impression": "each row has one item and says whether it was clicked",
        "request": "the items of a row are a list",
        "action": "nothing says what was shown and not clicked: negatives are drawn",
    }
    lines = ["", "[log]", f"table = {toml_value(table_name(log.file))}"]
    if log.rows == "action":
        lines += _comment(
            f"READ THIS: {c.name!r} is called a label, and is neither numbers nor yes and no: "
            f"{_described(c)}. Is each row a candidate that was shown? Then write rows = "
            '"impression" and [log.label] with one_of.'
            for c in unread_labels(log.file)
            if log.action is None or c is not log.action.column
        )
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
    lines += ["", f"[log.time] # {log.time.why}: {_span(log.time.column)}", *_time(log.time.column)]
    if log.label:
        guess, rule = log.label
        lines += ["", f"[log.label] # {guess.why}: {_described(guess.column)}"]
        lines += [f"column = {toml_value(guess.column.name)}", rule]
    elif log.action:
        values = [str(value) for value in log.action.column.there]
        most = max(sorted(set(values)), key=values.count)
        lines += ["", "[log.label] # the most frequent action is what is predicted"]
        lines += [
            f"column = {toml_value(log.action.column.name)}",
            f"one_of = [{toml_value(most)}]",
        ]
    if log.rows == "action":
        lines += ["", "[sampling] # nobody has seen such lists: they compare models, no more"]
        lines += ["num_negatives = 9", 'weights = "popularity"', "seed = 0"]
    return lines


def _behaviours(log: GuessedLog, others: dict[str, GuessedLog], gate: str | None) -> list[str]:
    if log.rows == "action":
        lines = ["", "[behaviours.action] # all rows of the log", *_own(table_name(log.file), log)]
    else:
        lines = ["", "[behaviours.click] # the positives of the log"]
    for name, other in others.items():
        category = _category(other)
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
        lines.append('utc_offset = "+00:00" # nothing says which: "+08:00" is China')
    return lines


def _window(log: GuessedLog) -> list[str]:
    """Days within which nearly all of the log lies, if some moments are far from them."""
    seconds = np.array(log.time.column.as_seconds())
    seconds = seconds[~np.isnan(seconds)]
    low, high = np.quantile(seconds, [0.01, 0.99])
    if np.ptp(seconds) <= 3 * max(high - low, _DAY_S):
        return []
    days = [datetime.fromtimestamp(t, UTC).date() for t in (low, high + _DAY_S)]
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
    empty = len(column.values) - len(column.there)
    rule = f"only = {{column = {toml_value(column.name)}, filled = true}}"
    warning = f"; EMPTY in {empty} of {len(column.values)} rows, refused without {rule}"
    warning *= bool(empty)
    return f"{toml_value(column.name)} # {guess.why}: {_described(column)}{warning}"


def _described(column: SniffedColumn) -> str:
    """A column in words, on one line."""
    values = list(dict.fromkeys(str(value) for value in column.there))
    shown = ", ".join(repr(v[:20])[1:-1] for v in values[:_EXAMPLES])
    return f"{column.num_distinct:,} values, such as {shown}"


def _comment(texts: Iterable[str]) -> list[str]:
    return [f"# {text}" for text in texts]


def _free_name(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    plain = plain if re.match("[a-z]", plain) else f"f_{plain}"
    number, found = 2, plain
    while found in taken:
        number, found = number + 1, f"{plain}_{number}"
    return found
