"""Which column of a log is its user, its item, its time ...: guesses by names and values."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdp_torchrec.data.prepare.leaks import LeakMeter
from cdp_torchrec.data.prepare.mapped.sniffed_columns import SniffedColumn, groups
from cdp_torchrec.data.prepare.mapped.sniffed_files import SniffedFile
from cdp_torchrec.data.schema import Role

_USER = r"(^|_)(user|usr|uid|member|customer|visitor|account|buyer)(s)?(_?id)?$|^userid$"
_ITEM = (
    r"(^|_)(item|article|video|movie|product|adgroup|ad|sku|goods|doc|document|news|creative|hotel"
    r"|song|track|book|listing)s?(_?ids?)?(_list|_inview)?$|^(parent_)?asin$"
)
_TIME = r"time|date|(^|_)ts$|_at$|when"
CLICKED = r"click|clk"
"""Names of columns that say something of a click."""
_REQUEST = r"(request|impression|search|query|session|page|serve|list|batch|pv)_?(view)?_?(id)?$"
_CATEGORY = r"categor|kategor|(^|_)cat(e)?s?(_?ids?)?($|_)|genre|^tags?$|topic|section|department"
_IDS = rf"ids?$|_(code|no)s?$|{_CATEGORY}"
_LATER = (
    r"play|dwell|read_time|stay|(^|_)(is_)?(like|follow|share|comment|forward|hate|favou?r)|purchas"
    r"|^next_|conver|(^|_)(buy|pay|order)|revenue|nonclk|long_view|scroll|watch"
)
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"query|keyword|search|term", "query"),
    (r"user|(^|_)(age|gender|sex|postcode|zip)($|_)|member|subscri|occupation|income", "user"),
    (r"device|platform|(^|_)os($|_)|client|channel|source|scene|tab|pid|app|site|locale", "scene"),
    (r"position|(^|_)rank|hour|day|page|slot|week", "context"),
)
_PLACE = r"position|^pos$|(^|_)(rank|slot)$"
BRACKETS = (
    "lists are written in brackets: write them as parquet's lists, or with one character between "
    "their elements and none around"
)
_LEAK = 0.95
_PAGE_S = 600
"""Nobody is shown one page of candidates for longer."""
_FEW = 100
_COUNTED = 20
_WHOLE = re.compile("[0-9]{1,18}")
_NEARLY = 0.9


@dataclass(frozen=True)
class Guess:
    """A column, and why it was chosen."""

    column: SniffedColumn
    why: str


def by_name(file: SniffedFile, pattern: str) -> list[SniffedColumn]:
    """Columns whose name fits, or that of the field of a struct, in the order of the file."""
    return [
        column
        for name, column in file.columns.items()
        if any(re.search(pattern, _plain(text)) for text in (name, name.rpartition(".")[2]))
    ]


def _plain(name: str) -> str:
    """A name as the patterns have it: "User ID" and "user.id" as "user_id", without accents."""
    letters = [c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c)]
    return re.sub(r"[\s.-]+", "_", "".join(letters).strip().lower())


def guess_user(file: SniffedFile) -> Guess | None:
    """The column with the user."""
    found = [c for c in by_name(file, _USER) if not c.is_list]
    return first_of(found, "by its name") or _unnamed(file, 0)


def guess_item(file: SniffedFile) -> Guess | None:
    """The column with the item or the list of items."""
    found = [c for c in by_name(file, _ITEM) if not _is_date(c) and c not in by_name(file, CLICKED)]
    lists = [c for c in found if c.is_list or item_separator(c)]
    clicked = guess_clicked(file)
    if lists and clicked:  # not those of a history, where structs say which of them were clicked
        lists.sort(key=lambda c: _struct(c) != _struct(clicked.column))
        return Guess(lists[0], "lists, by its name")
    found.sort(key=lambda column: len(column.there) < len(column.values))
    return first_of(found, "by its name") or _unnamed(file, 1)


def item_separator(column: SniffedColumn) -> str | None:
    """What stands between the items of lists; not what stands in the name of one, as in item_12.

    In lists an item has no place of its own, and those with underscores are not all of one length.
    """
    separator = column.separator()
    if separator not in (" ", "_"):
        return separator
    lists = [value.split(separator) for value in column.there]
    first, others = {parts[0] for parts in lists}, {p for parts in lists for p in parts[1:]}
    is_list = not first.isdisjoint(others) and all(re.search(r"\d", p) for p in first | others)
    is_list &= separator == " " or len({*map(len, lists)}) > 1
    return separator if is_list else None


def guess_time(file: SniffedFile) -> Guess | None:
    """The column with the moment: by its values, and by its name where there are several."""
    named_ids = by_name(file, f"{_USER}|{_ITEM}")
    moments = [c for c in file.columns.values() if c.moment() and c not in named_ids]
    named = [c for c in by_name(file, _TIME) if c in moments]
    named.sort(key=lambda c: re.search(f"{_USER}|{_ITEM}", _plain(_struct(c))) is not None)
    # One that tells the time of day goes before a date, and the time of a click comes last.
    named.sort(key=lambda c: (c.moment() or ("", None))[1] in ("%Y-%m-%d", "%Y%m%d"))
    clicked = by_name(file, CLICKED)
    named.sort(key=lambda c: c in clicked)
    return first_of(named, "by its name and its values") or first_of(
        moments, "its values are moments"
    )


def _struct(column: SniffedColumn) -> str:
    """The struct of which a column is a field, or nothing."""
    return column.name.rpartition(".")[0]


def _is_date(column: SniffedColumn) -> bool:
    """Whether a column has moments that cannot be numbers of something else."""
    found = column.moment()
    return found is not None and found[0] in ("text", "timestamp")


def said_unread_times(file: SniffedFile) -> str:
    """What to do about columns that are called a time, of a file in which no time is found."""
    columns = [column for column in by_name(file, _TIME) if column.there and not column.is_list]
    if not columns:
        return ""
    first = columns[0]
    return (
        f"; {first.name!r} is called a time, but {first.there[0]!r} is in no form that is known: "
        "write ISO 8601, or name its strptime format in a mapping of your own"
    )


def guess_clicked(file: SniffedFile) -> Guess | None:
    """The column with the clicked items of a request."""
    return first_of(by_name(file, CLICKED), "by its name")


def guess_request(
    file: SniffedFile, user: SniffedColumn, time: SniffedColumn
) -> tuple[tuple[SniffedColumn, ...], str]:
    """Columns that tell requests apart; none if user and time do."""
    for column in by_name(file, _REQUEST):
        if column in (user, time) or column.is_list:
            continue
        rows = list(groups([column]))
        users = [len({user.values[row] for row in group}) for group in rows]
        if len(rows) < 0.9 * file.num_rows and max(users) == 1:
            size = file.num_rows / len(rows)
            return (column,), f"{size:.1f} rows each, of one user{_said_long(rows, time)}"
    size = file.num_rows / len(list(groups([user, time])))
    return (), f"user and time tell requests apart: {size:.1f} rows each"


def _said_long(rows: Sequence[list[int]], time: SniffedColumn) -> str:
    """That what should be a page may be a session, whose rows lie apart."""
    seconds = np.array(time.as_seconds())
    spans = np.array([np.ptp(seconds[group]) for group in rows if len(group) > 1])
    spans = spans[~np.isnan(spans)]
    if not len(spans) or np.median(spans) <= _PAGE_S:
        return ""
    return (
        f". READ THIS: half of them last {np.median(spans):.0f} s or longer: is it a session, and "
        "no page of candidates?"
    )


def guess_request_of_lists(file: SniffedFile) -> tuple[SniffedColumn, ...]:
    """The column that names a row with lists, if there is one."""
    named = [c for c in by_name(file, _REQUEST) if not c.is_list]
    return tuple([c for c in named if c.num_distinct == file.num_rows][:1])


def guess_category(columns: Sequence[SniffedColumn]) -> SniffedColumn | None:
    """The attribute of items that is the gate."""
    several = [column for column in columns if column.num_distinct > 1]
    named = [c for c in several if re.search(_CATEGORY, _plain(c.name))]
    # Of columns without names, the one behind user and item.
    return next(iter(named or [c for c in several if is_unnamed(c) and not is_number(c)]), None)


def guess_role(name: str, *, of_candidate: bool, of_user: bool) -> Role:
    """Which embedding a feature belongs to."""
    if of_user:
        return "user"
    for pattern, role in _ROLES:
        if re.search(pattern, name.lower()) and not (of_candidate and role == "user"):
            return role
    return "item" if of_candidate else "context"


def is_number(column: SniffedColumn) -> bool:
    """Whether a column is a quantity: not the name of something."""
    if not column.is_number or re.search(r"(_|^)(id|code|no)$|id$", column.name.lower()):
        return False
    return not column.is_integer or (column.num_distinct > _FEW and not is_unnamed(column))


def oddly_written(column: SniffedColumn) -> str | None:
    """Why a column would be a quantity, but for how a few of its values are written."""
    if column.is_in_brackets:
        return f"its {BRACKETS}"
    if column.is_list or is_number(column) or re.search(_IDS, _plain(column.name)):
        return None
    if column.has_thousands:
        return "its numbers have commas between thousands: leave these out, or it is cut there"
    if column.has_decimal_commas:
        return "its numbers may have a decimal comma: write a point, or it is cut at the comma"
    numbers = column.numbers
    odd = len(column.there) - len(numbers)
    if odd > (1 - _NEARLY) * len(column.there):
        return None
    if not is_number(SniffedColumn(column.name, numbers)):
        return None
    known = set(numbers)
    first = next(value for value in column.there if value not in known)
    return (
        f"numbers but for {odd} of {len(column.there)} rows, such as {first!r}: say so in missing"
    )


def numbers_rows(column: SniffedColumn) -> str | None:
    """Why a column is no feature if it counts the rows of its file."""
    values = column.values
    if len(values) < _COUNTED or column.is_list or not _WHOLE.fullmatch(str(values[0])):
        return None
    first = int(values[0])
    counted = (value == str(first + place) for place, value in enumerate(values))
    return "it numbers the rows of the file" if all(counted) else None


def is_unnamed(column: SniffedColumn) -> bool:
    """Whether the file does not say what a column is called."""
    return re.fullmatch("column_[0-9]+", column.name) is not None


def known_later(column: SniffedColumn) -> str | None:
    """Why a column of the log may not be known when the candidates are shown."""
    if re.search(_LATER, _plain(column.name)):
        return "by its name it is known after the display only"
    return None


def is_place(column: SniffedColumn) -> bool:
    """Whether a column of candidates is by its name their place in the list."""
    return re.search(_PLACE, _plain(column.name)) is not None


def leaks(
    columns: Sequence[SniffedColumn], clicked: np.ndarray, request: np.ndarray
) -> dict[str, float]:
    """Columns that tell the label suspiciously well, with their AUC.

    Args:
        columns: of the log.
        clicked: labels of its rows, bool [n].
        request: number of the request of each row, [n].
    """
    meter = LeakMeter()
    coded = {}
    for column in columns:
        # Not as an array of text, in which each value takes the room of the longest one.
        texts = [str(value) for value in column.values]
        codes = {text: code for code, text in enumerate(sorted(set(texts)))}
        coded[column.name] = np.array([codes[text] for text in texts], dtype=np.int64)
        if is_number(column):
            numbers = [float("nan") if v is None else float(v) for v in column.values]
            coded[column.name] = np.array(numbers)
    meter.add(coded, clicked, request)
    return {name: f.value for name, f in meter.figures().items() if f.value > _LEAK}


def is_constant(column: SniffedColumn, rows: Sequence[Sequence[int]]) -> bool:
    """Whether a column has one value in each of some groups of rows."""
    return all(len({str(column.values[row]) for row in group}) == 1 for group in rows)


def _unnamed(file: SniffedFile, place: int) -> Guess | None:
    """Of columns without names, ids usually stand in the order user, item, category."""
    unnamed = [c for c in file.columns.values() if is_unnamed(c)]
    ids = [c for c in unnamed if not c.moment() and c.num_distinct > 1]
    which = ("first", "second", "third")[place]
    return Guess(ids[place], f"the {which} column of ids") if place < len(ids) else None


def first_of(columns: Sequence[SniffedColumn], why: str) -> Guess | None:
    """The first of some columns, if there is one."""
    return Guess(columns[0], why) if columns else None
