"""The tables that a converter makes of files, before they become a dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cdp_torchrec.data.prepare.spec import DatasetSpec
from cdp_torchrec.data.schema import DatasetError
from tests.data.trivago_events import Rows

Read = Callable[..., DatasetSpec]


@dataclass(frozen=True)
class ReadLog:
    """Requests in order, each with its candidates as lists; behaviours by user and time."""

    requests: Rows
    behaviours: Rows
    spec: DatasetSpec

    def by_id(self) -> dict[str, dict[str, Any]]:
        return {row["request_id"]: row for row in self.requests}


def read_log(read: Read, source: Path, **options: Any) -> ReadLog:
    """Run the part of a converter that is its own."""
    with duckdb.connect(config={"python_enable_replacements": False, "threads": 1}) as connection:
        spec = read(connection, source, **options)
        requests = _rows(connection, "FROM requests ORDER BY number")
        names = [f.name for f in spec.candidate_features()] + ["label"]
        lists = ", ".join(f'list("{name}" ORDER BY place) AS "{name}"' for name in names)
        listed = _rows(connection, f"SELECT number, {lists} FROM candidates GROUP BY number")
        assert [row["number"] for row in requests] == list(range(len(requests)))
        candidates = {row["number"]: row for row in listed}
        kept = {"request_id", "user_id", "timestamp", *(f.name for f in spec.request_features())}
        columns = ", ".join(name for name, _ in spec.behaviour_columns())
        query = f"SELECT {columns}, timestamp FROM behaviours ORDER BY user_id, timestamp, item"
        return ReadLog(
            [
                {name: row[name] for name in kept}
                | {name: candidates[row["number"]][name] for name in names}
                for row in requests
            ],
            _rows(connection, query),
            spec,
        )


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> Rows:
    result = connection.execute(query)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def refused(read: Read, source: Path, *messages: str) -> None:
    """The files are refused, in one line that names one of them."""
    with pytest.raises(DatasetError) as caught:
        read_log(read, source)
    text = str(caught.value)
    assert text.startswith(str(source)) and "\n" not in text, text
    for message in messages:
        assert message in text


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
