"""A draft of the mapping of a log, made by looking at its files: a comment on every guess."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cdp_torchrec.config.keys import toml_value
from cdp_torchrec.data.prepare.csv_tables import is_ascii
from cdp_torchrec.data.prepare.mapped.drafted_sections import (
    DAY_S,
    behaviour_lines,
    category_of,
    comment,
    described,
    log_lines,
    table_lines,
    window_lines,
)
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
    BRACKETS,
    guess_category,
    guess_role,
    is_number,
    is_place,
    numbers_rows,
    oddly_written,
)
from cdp_torchrec.data.prepare.mapped.mapping_config import RESERVED_FEATURES
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedFile, is_blank, sniff
from cdp_torchrec.data.schema import DatasetError

NOT_USED = "Not used:"
"""Begins the comment on a file of which nothing is read."""
_KNOWN_LATE = (
    "READ THIS: known only after ranking: leave it out with data.exclude_features, or score with a "
    "constant."
)
_NO_GATE = (
    'READ THIS: no feature looks like the category of an item. Name one, category = "...", or the '
    "gate of the history is off."
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
    blank = [path for path in paths if is_blank(path)]
    if len(blank) == len(paths):
        raise DatasetError(f"{paths[0]}: the file is empty")
    files = _gathered([sniff(path) for path in paths if path not in blank])
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    log = find_log(files)
    others = [file for file in files if file is not log.file]
    attributes = find_attributes(log, others)
    gate, gate_table, features = _features(log, attributes)
    attributes = [a for a in attributes if f"table = {toml_value(a.name)}" in features]
    rest = [file for file in others if file not in [a.file for a in attributes]]
    needs_category = gate is not None and gate_table is None
    behaviours, unused = _sorted_out(log, rest, needs_category=needs_category)
    unused |= dict.fromkeys(blank, "it is empty, which a part of a table may be")
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
        f"category = {toml_value(gate)} # the gate of the history" if gate else f"# {_NO_GATE}",
    ]
    for file in [log.file, *(a.file for a in attributes), *(b.file for b in behaviours.values())]:
        lines += table_lines(file, folder, attributes)
    lines += comment(f"{NOT_USED} {path}: {reason}" for path, reason in unused.items())
    lines += [*log_lines(log), *features]
    lines += behaviour_lines(log, behaviours, gate)
    lines += window_lines(log)
    lines += ["", "[split]", "test_share = 0.2 # the latest fifth; or test_from = a date"]
    return "\n".join(lines) + "\n"


def _sorted_out(
    log: GuessedLog, files: Sequence[SniffedFile], *, needs_category: bool
) -> tuple[dict[str, GuessedLog], dict[Path, str]]:
    """Files with behaviours by their tables' names, and why each other one is not used."""
    behaviours, unused = {}, {}
    for file in files:
        found = find_behaviours(file)
        if log.rows != "action" and log.used <= file.columns.keys():
            unused[file.path] = (
                f"it has {sorted(log.used)} like {log.file.path}, and other columns beside: the "
                "files of one table have the same columns"
            )
        elif found is None:
            reason = why_no_attributes(log, file)
            unused[file.path] = f"{reason}; behaviours need a user, an item and a time"
        elif needs_category and category_of(found) is None:
            unused[file.path] = "no column has the category, which only the log has"
        else:
            behaviours[table_name(file)] = found
    return behaviours, unused


def _check_ids(log: GuessedLog) -> None:
    columns = [guess.column for guess in (log.user, log.item, log.action) if guess]
    for column in (*columns, *log.request):
        if column.fractions:
            raise DatasetError(f"{log.file.path}: {column.name!r} has {column.fractions} {_NO_IDS}")
        if column.is_in_brackets:
            first = column.there[0]
            raise DatasetError(f"{log.file.path}: {column.name!r} has {first!r}: its {BRACKETS}")


def _gathered(files: Sequence[SniffedFile]) -> list[SniffedFile]:
    """Files with the same columns are parts of one table, in whatever order they stand.

    Raises:
        DatasetError: two tables would have the same name, one has no rows, or parts of one are
            written in two ways.
    """
    found: list[SniffedFile] = []
    for file in sorted(files, key=lambda file: file.num_rows == 0):  # what has none says nothing
        same = [f for f in found if f.columns.keys() == file.columns.keys()]
        same = [f for f in same if _is_written_alike(f, file)]
        if same:
            found[found.index(same[0])] = _with_part(same[0], file)
        elif file.num_rows == 0:
            raise DatasetError(f"{file.path}: the file has no rows")
        elif table_name(file) in map(table_name, found):
            raise DatasetError(f"{file.path}: another file has this name, but other columns")
        else:
            found.append(file)
    return found


def _is_written_alike(first: SniffedFile, other: SniffedFile) -> bool:
    """Whether two files with the same columns can be read as one table.

    Raises:
        DatasetError: they are one by their headers, but cannot be read alike.
    """
    forms = (first.form, other.form)
    if first.form == other.form:
        return True
    if first.form and other.form:
        alike = other.form
        if not (first.has_quotes and other.has_quotes):
            alike = replace(alike, quote=first.form.quote)
        # Nor does a header say of which encoding cells are.
        if other.num_rows == 0 or _is_in_both(first, other) or _is_in_both(other, first):
            alike = replace(alike, encoding=first.form.encoding)
        if alike == first.form:
            return True
    if any(form and form.names for form in forms):
        return False  # their columns are numbered, so that their names say nothing
    here, there = ["parquet" if f is None else f.written for f in forms]
    raise DatasetError(
        f"{other.path}: it has the columns of {first.path}, but is written otherwise: {there}, "
        f"not {here}; files of one table are read alike"
    )


def _is_in_both(plain: SniffedFile, other: SniffedFile) -> bool:
    """Whether all of a table is ASCII, which is latin-1 as well, like the other file."""
    encodings = [file.form and file.form.encoding for file in (plain, other)]
    return encodings == ["utf-8", "latin-1"] and all(map(is_ascii, (plain.path, *plain.more)))


def _with_part(table: SniffedFile, file: SniffedFile) -> SniffedFile:
    missing = tuple(dict.fromkeys((*table.missing, *file.missing)))
    form, has_quotes = table.form, table.has_quotes
    if form and file.form:
        if file.has_quotes and not has_quotes:
            form, has_quotes = replace(form, quote=file.form.quote), True
        if _is_in_both(table, file):
            form = replace(form, encoding=file.form.encoding)
    more = (*table.more, file.path)
    return replace(table, more=more, missing=missing, form=form, has_quotes=has_quotes)


# --- features ------------------------------------------------------------------------------------


def _features(
    log: GuessedLog, attributes: Sequence[Attributes]
) -> tuple[str | None, Attributes | None, list[str]]:
    """Name of the feature that is the gate, its table if it is not the log, and all lines."""
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
    gate_name, gate_table = None, None
    for column, table in sources:
        name = "category_id" if column is gate else _free_name(column.name, names)
        names.add(name)
        of_candidate = column in candidate or (table is not None and table.by == "item")
        written = _feature(name, column, table, log, of_candidate=of_candidate)
        reason = doubts.get(column.name)
        if table:
            reason = oddly_written(column) or numbers_rows(column)
        if column.fractions and 'kind = "number"' not in written:
            reason = reason or _no_ids(log, column)
        if reason:
            lines += ["", *comment([f"{column.name!r} is left out: {reason}"])]
            lines += [f"# {line}" for line in written]
        elif column.num_distinct <= 1:
            lines += ["", *comment([f"{column.name!r} has one value, so that it says nothing"])]
        else:
            if column is gate:
                gate_name, gate_table = name, table
            is_known_late = column in candidate and is_place(column)
            lines += ["", *(comment([_KNOWN_LATE]) if is_known_late else []), *written]
    lines += _hour(log, names)
    return gate_name, gate_table, lines


def _no_ids(log: GuessedLog, column: SniffedColumn) -> str:
    """Why numbers with a fraction, none of each request or candidate, are no feature."""
    if not column.is_list:
        return f"{column.fractions} {_NO_IDS}"
    uneven_row = uneven(log, column) if log.rows == "request" else None
    if uneven_row:
        return f"lists of numbers that are not one for each candidate: {uneven_row}"
    return f"lists of {column.fractions} {_NO_IDS}"


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
        f"[features.{name}] # {described(column)}",
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
    if separator and of_candidate and len({v.partition(separator)[0] for v in column.there}) == 1:
        return None  # the first of several would say nothing: a path from one root, say
    if separator != " " or not of_candidate:
        return separator
    parts = {part for value in column.there for part in value.split(separator)}
    return separator if all(re.search(r"\d", part) for part in parts) else None


def _hour(log: GuessedLog, names: set[str]) -> list[str]:
    seconds = np.array(log.time.column.as_seconds())
    seconds = seconds[~np.isnan(seconds)]
    if "hour" in names or np.ptp(seconds) < DAY_S or np.all(seconds % DAY_S == seconds[0] % DAY_S):
        return []
    return [
        "",
        "[features.hour] # of the day; in local time if time.utc_offset says so",
        'role = "context"',
        'level = "request"',
        'kind = "id"',
        'derive = "hour"',
    ]


def _free_name(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    plain = plain if re.match("[a-z]", plain) else f"f_{plain}"
    number, found = 2, plain
    while found in taken:
        number, found = number + 1, f"{plain}_{number}"
    return found
