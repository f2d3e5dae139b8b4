"""Everything that can be wrong with staging files, found before the work begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cdp_torchrec.data.clocks import utc
from cdp_torchrec.data.prepare.database import first_broken_rule, first_row, sql_paths
from cdp_torchrec.data.prepare.spec import CLICK_PROBABILITY, DatasetSpec
from cdp_torchrec.data.schema import LARGEST_NUMBER, DatasetError, Feature, Split


@dataclass(frozen=True)
class StagedLog:
    """What the checks found out."""

    has_probability: bool
    """The requests have a `click_probability`."""
    splits: Mapping[Literal["train", "test"], Split]


def open_staging(
    connection: duckdb.DuckDBPyConnection, staging: Path, spec: DatasetSpec
) -> StagedLog:
    """Make the views `staged_requests` and `staged_behaviours` over files that were checked.

    Raises:
        DatasetError: files are missing or unreadable, columns are missing or of another type, a
            row breaks the contract, or a split is empty.
    """
    columns = _request_columns(spec)
    files = _parquet_files(staging / "requests")
    has_probability = any(CLICK_PROBABILITY in pq.read_schema(path).names for path in files)
    if has_probability:
        columns[CLICK_PROBABILITY] = _NUMBERS
    _open_table(connection, "requests", files, columns)
    behaviours = {"timestamp": _INTEGER} | {name: _ID for name, _ in spec.behaviour_columns()}
    _open_table(connection, "behaviours", _parquet_files(staging / "behaviours"), behaviours)

    _check_rows(connection, "requests", "request_id", _request_rules(spec, has_probability))
    _check_sizes(connection, spec)
    _check_rows(connection, "behaviours", "user_id", _null_rules("user_id", "item", "timestamp"))
    _check_unique(connection)
    return StagedLog(has_probability, _splits(connection, spec))


@dataclass(frozen=True)
class _Column:
    """A family of types that a column may have."""

    expected: str
    accepts: Callable[[pa.DataType], bool]


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _list_of(element: _Column) -> _Column:
    def accepts(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and element.accepts(kind.value_type)

    return _Column(f"list of {element.expected}", accepts)


_INTEGER = _Column("integer", pa.types.is_integer)
_ID = _Column("string or integer", _is_id)
_NUMBER = _Column("number", _is_number)
_IDS = _list_of(_ID)
_NUMBERS = _list_of(_NUMBER)


def _request_columns(spec: DatasetSpec) -> dict[str, _Column]:
    columns = {"request_id": _ID, "user_id": _ID, "timestamp": _INTEGER, "label": _NUMBERS}
    for f in spec.features:
        element = _NUMBER if f.kind == "number" else _ID
        single = f.level == "request" and f.kind != "ids"
        columns[f.name] = element if single else _list_of(element)
    return columns


def _parquet_files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise DatasetError(f"{directory}: no *.parquet file there")
    for path in files:
        try:
            pq.read_metadata(path)
        except pa.ArrowException as error:
            raise DatasetError(f"{path}: damaged or cut off parquet file: {error}") from error
    return files


def _open_table(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    files: list[Path],
    columns: Mapping[str, _Column],
) -> None:
    for path in files:
        schema = pq.read_schema(path)
        for name, column in columns.items():
            if name not in schema.names:
                raise DatasetError(f"{path}: column '{name}' is missing, found {schema.names}")
            found = schema.field(name).type
            if not column.accepts(found):
                raise DatasetError(
                    f"{path}: column '{name}' is of type {found}, expected {column.expected}"
                )
    names = ", ".join(f'"{name}"' for name in columns)
    connection.execute(f"""
        CREATE VIEW staged_{table} AS
        SELECT {names}, filename AS _file, file_row_number AS _row
        FROM read_parquet({sql_paths(files)}, filename = true, file_row_number = true)
    """)


def _null_rules(*columns: str) -> dict[str, str]:
    return {f"{name} IS NULL": f"'{name}' is null" for name in columns}


def _request_rules(spec: DatasetSpec, has_probability: bool) -> dict[str, str]:
    """SQL condition of a bad row -> what is wrong with it."""
    rules = _null_rules("request_id", "user_id", "timestamp")
    rules["label IS NULL OR len(label) = 0"] = "the candidate list is empty ('label')"
    lists = [f.name for f in spec.candidate_features()]
    lists += [CLICK_PROBABILITY] if has_probability else []
    for name in lists:
        rules[f'"{name}" IS NULL OR len("{name}") <> len(label)'] = (
            f"candidate lists of unequal length: '{name}' and 'label'"
        )
    rules["len(list_filter(label, lambda x: x IS NULL OR x NOT IN (0, 1))) > 0"] = (
        "'label' holds values other than 0 and 1"
    )
    rules["len(item_id) <> len(list_filter(item_id, lambda x: x IS NOT NULL))"] = (
        "'item_id' holds a null"
    )
    if has_probability:
        rules[
            f"len(list_filter({CLICK_PROBABILITY}, "
            "lambda x: x IS NULL OR NOT x BETWEEN 0 AND 1)) > 0"
        ] = f"'{CLICK_PROBABILITY}' holds values outside [0, 1]"
    for f in spec.features:
        if f.kind == "number":
            values = f'["{f.name}"]' if f.level == "request" else f'"{f.name}"'
            rules[f"len(list_filter({values}, lambda x: isinf(x::DOUBLE))) > 0"] = (
                f"'{f.name}' holds an infinite number"
            )
    return rules


def _too_large(feature: Feature) -> str:
    """SQL: the first number of a row that is beyond LARGEST_NUMBER; null if there is none."""
    values = f'["{feature.name}"]' if feature.level == "request" else f'"{feature.name}"'
    # NaN, which is greater than all numbers here, stands for a missing one.
    large = f"abs(x::DOUBLE) > {LARGEST_NUMBER!r} AND NOT isnan(x::DOUBLE)"
    return f"list_filter({values}, lambda x: {large})[1]"


def _check_rows(
    connection: duckdb.DuckDBPyConnection, table: str, named: str, rules: Mapping[str, str]
) -> None:
    bad = first_broken_rule(connection, f"staged_{table}", rules, ("_file", "_row", named))
    if bad:
        message, path, row, name = bad
        raise DatasetError(f"{path}: row {row} ({named} {name}): {message}")


def _check_sizes(connection: duckdb.DuckDBPyConnection, spec: DatasetSpec) -> None:
    """Numbers are of a size that can be added up and squared."""
    found = {f.name: f"({_too_large(f)})::DOUBLE" for f in spec.features if f.kind == "number"}
    if not found:
        return
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in found.items())
    bad = first_row(
        connection,
        f"""
        SELECT * FROM (SELECT _file, _row, request_id, {columns} FROM staged_requests)
        WHERE coalesce({", ".join(f'"{name}"' for name in found)}) IS NOT NULL
        ORDER BY _file, _row LIMIT 1
        """,
    )
    if bad:
        path, row, request, *values = bad
        name, value = next((n, v) for n, v in zip(found, values, strict=True) if v is not None)
        raise DatasetError(
            f"{path}: row {row} (request_id {request}): '{name}' holds {value:.6g}, numbers "
            f"beyond {LARGEST_NUMBER:.3g} are refused"
        )


def _check_unique(connection: duckdb.DuckDBPyConnection) -> None:
    repeated = first_row(
        connection,
        """
        SELECT request_id, count(*) AS n, min(_file), max(_file)
        FROM staged_requests GROUP BY request_id HAVING n > 1 ORDER BY request_id LIMIT 1
    """,
    )
    if repeated:
        key, count, first, last = repeated
        raise DatasetError(
            f"{first}: request_id {key} occurs {count} times (last in {last}), it must be unique"
        )


def _splits(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec
) -> dict[Literal["train", "test"], Split]:
    rows = connection.execute(f"""
        SELECT timestamp >= {spec.test_from}, count(*), sum(len(label))::BIGINT,
            sum(list_sum(label))::BIGINT, min(timestamp), max(timestamp)
        FROM staged_requests GROUP BY ALL
    """).fetchall()
    splits: dict[Literal["train", "test"], Split] = {}
    for is_test, requests, impressions, clicks, first, last in rows:
        splits["test" if is_test else "train"] = Split(
            requests=requests,
            impressions=impressions,
            clicks=clicks,
            first_timestamp=first,
            last_timestamp=last,
        )
    if not splits:
        raise DatasetError("the log has no requests")
    first = min(split.first_timestamp for split in splits.values())
    last = max(split.last_timestamp for split in splits.values())
    for name, side in (("train", "before"), ("test", "at or after")):
        if name not in splits:
            raise DatasetError(
                f"the {name} split is empty: no request {side} {utc(spec.test_from)} (test_from); "
                f"requests run from {utc(first)} to {utc(last)}"
            )
    return {"train": splits["train"], "test": splits["test"]}
