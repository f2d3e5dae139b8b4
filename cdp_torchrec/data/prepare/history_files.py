"""The history store: every behaviour once, in flat arrays that the reader maps into memory.

user_offsets.npy      behaviours of user u are rows user_offsets[u]:user_offsets[u + 1]
users.npy             only in the segment of a day, in which most users are not: the codes of those
                      that are; the offsets are theirs
by_time/*.npy         ordered by (user, timestamp), with the cluster of each behaviour
by_category/*.npy     ordered by (user, category, timestamp), with keys.npy and offsets.npy

Attributes of behaviours are columns of both orders, attribute_<name>.npy: numbers float32 [N], NaN
where one is missing; ids int32 [N, max_ids], 0 behind the last one.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import duckdb
import numpy as np

from cdp_torchrec.data.history.behaviour_attributes import BehaviourAttribute
from cdp_torchrec.data.history.behaviour_clusters import alike_columns, assign_clusters
from cdp_torchrec.data.prepare.database import Tables, scalar
from cdp_torchrec.data.prepare.earlier_histories import EarlierHistories
from cdp_torchrec.data.prepare.moments import Moments
from cdp_torchrec.data.prepare.spec import DatasetSpec

_ROWS_PER_CHUNK = 1 << 18
DTYPES = {"item": np.int32, "category": np.int32, "action": np.int32, "timestamp": np.int64}


def code_behaviours(connection: Tables, spec: DatasetSpec) -> int:
    """Make table `behaviours`: codes, timestamp, and `ordinal`, 1 for a user's first behaviour.

    The view `past` is what requests look at. Behaviours of one user at one timestamp are ordered by
    their codes, so that the order is a function of the log alone.

    Returns:
        Number of behaviours.
    """
    columns = [(name, f"b.{name}", entity) for name, entity in spec.behaviour_columns()]
    columns += [column for a in spec.attributes for column in _attribute_codes(a)]
    codes = ", ".join(f"coalesce(_{name}.code, 0) AS {name}" for name, _, _ in columns)
    joins = " ".join(
        f"LEFT JOIN vocabulary_{entity} _{name} ON _{name}.raw = {raw}::VARCHAR"
        for name, raw, entity in columns
    )
    numbers = [a for a in spec.attributes if a.kind == "number"]
    for a in numbers:
        codes += f""", coalesce(b."{a.name}"::DOUBLE, 'nan')::FLOAT AS {a.file}"""
    ties = ", ".join([*(name for name, _, _ in columns[1:]), *(a.file for a in numbers)])
    connection.execute(f"""
        CREATE TABLE behaviours AS
        SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY timestamp, {ties}) AS ordinal
        FROM (SELECT {codes}, b.timestamp FROM staged_behaviours b {joins})
        ORDER BY user_id, ordinal
    """)
    connection.execute(
        "CREATE VIEW past AS SELECT user_id, item, timestamp, ordinal FROM behaviours"
    )
    return scalar(connection, "SELECT count(*) FROM behaviours")


def write_history(
    connection: Tables,
    spec: DatasetSpec,
    directory: Path,
    num_ids: Mapping[str, int],
) -> None:
    """Write the store from table `behaviours`.

    Args:
        connection: holds table `behaviours`.
        spec: says whether behaviours have a category and an action.
        directory: made here.
        num_ids: number of ids of each entity.
    """
    _write_orders(connection, spec, directory, num_ids)
    offsets = np.zeros(num_ids["user"] + 2, dtype=np.int64)
    counts = connection.sql("SELECT user_id, count(*) AS n FROM behaviours GROUP BY user_id")
    for batch in counts.to_arrow_reader(_ROWS_PER_CHUNK):
        offsets[1 + batch["user_id"].to_numpy()] = batch["n"].to_numpy()
    np.save(directory / "user_offsets.npy", np.cumsum(offsets))
    _write_clusters(directory / "by_time", np.cumsum(offsets))


def write_segment(
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    directory: Path,
    num_ids: Mapping[str, int],
    earlier: EarlierHistories,
) -> None:
    """Write what a day adds to the store from table `behaviours`.

    Args:
        connection: holds table `behaviours`.
        spec: says whether behaviours have a category and an action.
        directory: made here.
        num_ids: number of ids of each entity, with those of the day.
        earlier: what the store has from before.
    """
    _write_orders(connection, spec, directory, num_ids)
    query = "SELECT user_id, count(*) AS n FROM behaviours GROUP BY user_id ORDER BY user_id"
    counts = connection.sql(query).to_arrow_table()
    users, lengths = counts["user_id"].to_numpy(), counts["n"].to_numpy()
    np.save(directory / "users.npy", users.astype(np.int32))
    np.save(directory / "user_offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    by_time = directory / "by_time"
    columns = {
        name: np.load(by_time / f"{name}.npy")
        for name in ("item", "category", "action")
        if (by_time / f"{name}.npy").exists()
    }
    owner = np.repeat(users, lengths)
    alike = alike_columns(columns["item"], columns.get("category"), columns.get("action"))
    clusters = assign_clusters(owner, alike, earlier.clusters(owner, alike))
    np.save(by_time / "cluster.npy", clusters)


def _write_orders(
    connection: Tables,
    spec: DatasetSpec,
    directory: Path,
    num_ids: Mapping[str, int],
) -> None:
    """Write the columns in both orders, and the index of the second."""
    names = [name for name in DTYPES if name in {"timestamp", *dict(spec.behaviour_columns())}]
    columns = {name: DTYPES[name] for name in names}
    attributes = [column for a in spec.attributes for column in a.columns]
    num_behaviours = scalar(connection, "SELECT count(*) FROM behaviours")
    directory.mkdir()
    _write_columns(
        connection,
        f"SELECT {', '.join(names + attributes)} FROM behaviours ORDER BY user_id, ordinal",
        directory / "by_time",
        columns,
        spec.attributes,
        num_behaviours,
    )
    if spec.category_entity:
        by_category = directory / "by_category"
        kept = [name for name in names if name != "category"]
        _write_columns(
            connection,
            f"SELECT {', '.join(kept + attributes)} FROM behaviours "
            "ORDER BY user_id, category, ordinal",
            by_category,
            {name: columns[name] for name in kept},
            spec.attributes,
            num_behaviours,
        )
        _write_category_index(connection, by_category, num_ids[spec.category_entity] + 1)


def _write_clusters(directory: Path, user_offsets: np.ndarray) -> None:
    """Write cluster.npy from the other columns, some whole users at once."""
    names = ("item", "category", "action")
    columns = {
        name: np.load(directory / f"{name}.npy", mmap_mode="r")
        for name in names
        if (directory / f"{name}.npy").exists()
    }
    num_behaviours, num_users = int(user_offsets[-1]), len(user_offsets) - 1
    with NpyWriter(directory / "cluster.npy", np.int32, num_behaviours) as clusters:
        user = 0
        while user < num_users:
            stop = np.searchsorted(user_offsets, user_offsets[user] + _ROWS_PER_CHUNK, side="right")
            stop = max(user + 1, int(stop) - 1)
            rows = slice(int(user_offsets[user]), int(user_offsets[stop]))
            owner = np.repeat(np.arange(user, stop), np.diff(user_offsets[user : stop + 1]))
            parts = {name: np.asarray(column[rows]) for name, column in columns.items()}
            alike = alike_columns(parts["item"], parts.get("category"), parts.get("action"))
            clusters.append(assign_clusters(owner, alike))
            user = stop


def _write_category_index(connection: Tables, directory: Path, categories: int) -> None:
    """Write keys.npy (user * categories + category, sorted) and offsets.npy of by_category."""
    query = f"""
        SELECT user_id * {categories} + category AS key, count(*) AS n
        FROM behaviours GROUP BY key ORDER BY key
    """
    num_keys = scalar(connection, f"SELECT count(*) FROM ({query})")
    with (
        NpyWriter(directory / "keys.npy", np.int64, num_keys) as keys,
        NpyWriter(directory / "offsets.npy", np.int64, num_keys + 1) as offsets,
    ):
        end = np.zeros(1, dtype=np.int64)
        offsets.append(end)
        for batch in connection.sql(query).to_arrow_reader(_ROWS_PER_CHUNK):
            keys.append(batch["key"].to_numpy())
            ends = end[-1] + np.cumsum(batch["n"].to_numpy())
            offsets.append(ends)
            end = ends


def _write_columns(
    connection: Tables,
    query: str,
    directory: Path,
    columns: Mapping[str, type[np.generic]],
    attributes: Sequence[BehaviourAttribute],
    num_rows: int,
) -> None:
    directory.mkdir()
    with ExitStack() as stack:
        of_attributes = [
            stack.enter_context(attribute_writer(directory, a, num_rows)) for a in attributes
        ]
        writers = {
            name: stack.enter_context(NpyWriter(directory / f"{name}.npy", dtype, num_rows))
            for name, dtype in columns.items()
        }
        for batch in connection.sql(query).to_arrow_reader(_ROWS_PER_CHUNK):
            for name, writer in writers.items():
                writer.append(batch[name].to_numpy())
            for a, writer in zip(attributes, of_attributes, strict=True):
                values = [batch[column].to_numpy() for column in a.columns]
                writer.append(values[0] if a.kind == "number" else np.stack(values, axis=1))


def _attribute_codes(attribute: BehaviourAttribute) -> list[tuple[str, str, str]]:
    """Column, SQL of its raw id, and entity, of each id that a behaviour may have."""
    if attribute.entity is None:
        return []
    if attribute.kind == "id":
        return [(attribute.file, f'b."{attribute.name}"', attribute.entity)]
    known = f'list_filter(b."{attribute.name}", lambda x: x IS NOT NULL)'
    return [
        (column, f"list_extract({known}, {place})", attribute.entity)
        for place, column in enumerate(attribute.columns, start=1)
    ]


def attribute_writer(folder: Path, attribute: BehaviourAttribute, length: int) -> "NpyWriter":
    """What writes the column of an attribute of so many behaviours."""
    path = folder / f"{attribute.file}.npy"
    if attribute.kind == "number":
        return NpyWriter(path, np.float32, length)
    return NpyWriter(path, np.int32, length, width=attribute.max_ids)


def attribute_scales(
    directory: Path, attributes: Sequence[BehaviourAttribute], *, before: int
) -> tuple[BehaviourAttribute, ...]:
    """The attributes, numbers with their mean and deviation.

    Args:
        directory: of the store.
        attributes: of the behaviours.
        before: behaviours from here on do not count, such as those after the training split; ms.
    """
    folder = directory / "by_time"
    times = np.load(folder / "timestamp.npy", mmap_mode="r")
    found = []
    for attribute in attributes:
        if attribute.kind == "number":
            values, moments = np.load(folder / f"{attribute.file}.npy", mmap_mode="r"), Moments()
            for start in range(0, len(times), _ROWS_PER_CHUNK):
                rows = slice(start, start + _ROWS_PER_CHUNK)
                known = (np.asarray(times[rows]) < before).astype(np.int64)
                moments.add(np.asarray(values[rows], dtype=np.float64), known)
            attribute = attribute.model_copy(update={"mean": moments.mean, "std": moments.std})
        found.append(attribute)
    return tuple(found)


class NpyWriter:
    """A .npy file of known length, [N] or [N, width], written in pieces.

    Plain writes, not a memory map: a full disk is then an OSError instead of a killed process.
    """

    def __init__(
        self, path: Path, dtype: type[np.generic], length: int, *, width: int | None = None
    ) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self._missing = length
        shape = (length,) if width is None else (length, width)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Write the next values."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self._missing -= len(values)

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        assert kind is not None or self._missing == 0, "rows written differ from the length"
