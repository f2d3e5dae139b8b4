"""Spark as the engine of preparation, for logs that one machine cannot sort.

It is asked what DuckDB is asked: the same statements, translated by `spark_sql`. Every table lies
in parquet files beside the output, so driver and executors need a file system that all of them see,
and the same Python environment. The driver writes the dataset, reading sorted rows as a stream.
"""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlglot
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

from cdp_torchrec.data.prepare.database import EngineLimits, open_database
from cdp_torchrec.data.prepare.spark.sql import spark_sql
from cdp_torchrec.data.prepare.tables import ParquetTable
from cdp_torchrec.data.schema import DatasetError

_SETTINGS = {
    # Overflows and bad casts are errors, the size of a missing list is missing: as in DuckDB.
    "spark.sql.ansi.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
}


@contextmanager
def open_spark(directory: Path, limits: EngineLimits) -> Generator["SparkTables"]:
    """Tables on the cluster of the running session, or of the one that Spark's own settings name.

    Args:
        directory: made here; where the tables lie.
        limits: of what is done on this machine beside.

    Raises:
        OSError: Spark cannot be started, or gives up.
    """
    directory.mkdir(parents=True)
    # The executors of a local session run on the Python of this process.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        session = SparkSession.builder.appName("cdp_torchrec prepare_data").getOrCreate()
        session = session.newSession()
        for name, value in _SETTINGS.items():
            session.conf.set(name, value)
        yield SparkTables(session, directory.resolve(), limits)
    except (PySparkException, Py4JError) as error:
        raise OSError(f"Spark: {error}") from error


class SparkTables:
    """Takes the statements of the preparation as a connection to DuckDB does."""

    def __init__(self, session: SparkSession, directory: Path, limits: EngineLimits) -> None:
        """Args: a session of one's own, an empty directory for its tables, and as `open_spark`."""
        self._session = session
        self._limits = limits
        self._directory = directory
        self._numbers = count()
        self._answer: list[tuple[Any, ...]] = []

    def load_parquet(self, name: str, table: ParquetTable) -> None:
        """As `database.load_parquet`; each file is read by an executor, by the same code."""
        directory = self._directory / name
        directory.mkdir()

        def rewrite(number: int) -> str | None:
            try:
                _rewrite(table, number, directory / f"part-{number:05d}.parquet")
            except DatasetError as error:
                return str(error)
            return None

        files = range(len(table.paths))
        context = self._session.sparkContext
        problems = context.parallelize(files, len(files)).map(rewrite).collect()
        for problem in problems:
            if problem is not None:
                raise DatasetError(problem)
        self._session.read.parquet(str(directory)).createOrReplaceTempView(name)

    def execute(self, statements: str) -> "SparkTables":
        """Run statements, one after the other; `fetchall` gives the rows of the last."""
        for statement in sqlglot.parse(statements, read="duckdb"):
            self._answer = []
            if isinstance(statement, exp.Copy):
                self._copy(statement)
            elif isinstance(statement, exp.Create) and statement.kind == "TABLE":
                self._create(statement.this.name, statement.expression)
            elif isinstance(statement, exp.Create):
                query = self._query(statement.expression)
                query.createOrReplaceTempView(statement.this.name)
            else:
                self._answer = [tuple(row) for row in self._query(statement).collect()]
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Rows of the last statement."""
        return self._answer

    def sql(self, query: str) -> "_Result":
        """A query whose rows are read some at a time."""
        return _Result(self._ordered_files(sqlglot.parse_one(query, read="duckdb")))

    def _query(self, statement: exp.Expression) -> DataFrame:
        return self._session.sql(spark_sql(statement))

    def _ordered_files(self, statement: exp.Expression) -> list[Path]:
        """Files with the rows of a query, in its order from file to file."""
        directory = self._directory / f"result-{next(self._numbers)}"
        self._query(statement).write.parquet(str(directory))
        return sorted(directory.glob("part-*.parquet"))

    def _store(self, name: str, rows: DataFrame) -> None:
        directory = str(self._directory / name)
        rows.write.parquet(directory)
        self._session.read.parquet(directory).createOrReplaceTempView(name)

    def _create(self, name: str, query: exp.Expression) -> None:
        """`CREATE TABLE name AS query`; all executors sort what gets numbers."""
        numbered = [e for e in query.expressions if _is_numbering(e)]
        if not numbered:
            self._store(name, self._query(query))
            return
        [alias] = numbered
        window = alias.find(exp.Window)
        query.set("order", window.args["order"].pop())
        others = [e for e in query.expressions if e is not alias]
        query.set("expressions", others)
        paths = self._ordered_files(query)
        sizes = [pq.read_metadata(path).num_rows for path in paths]
        firsts = [int(first) for first in np.cumsum([0, *sizes[:-1]])]
        starts = [(path.name, first) for path, first in zip(paths, firsts, strict=True)]
        sorted_rows = self._session.read.parquet(*map(str, paths)).select(
            "*", "_metadata.file_name", "_metadata.row_index"
        )
        sorted_rows.createOrReplaceTempView("_sorted")
        frame = self._session.createDataFrame(starts, "file_name STRING, first BIGINT")
        frame.createOrReplaceTempView("_starts")
        window.replace(exp.column("first") + exp.column("row_index") + 1)
        names = [f"`{e.alias_or_name}`" for e in others]
        number = alias.sql("spark")
        self._store(
            name,
            self._session.sql(
                f"SELECT {number}, {', '.join(names)} FROM _sorted JOIN _starts USING (file_name)"
            ),
        )

    def _copy(self, statement: exp.Expression) -> None:
        """`COPY (query) TO path`: written by DuckDB, as everywhere."""
        [target] = statement.args["files"]
        rows = _Result(self._ordered_files(statement.this.this)).to_arrow_reader(1 << 16)
        path = target.sql("duckdb")
        with open_database(self._directory / f"copy-{next(self._numbers)}", self._limits) as engine:
            # From a table, of which it knows that no value is missing.
            engine.register("_rows", rows)
            engine.execute("CREATE TABLE copied AS FROM _rows")
            engine.execute(f"COPY copied TO {path} (FORMAT parquet)")


class _Result:
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def to_arrow_reader(self, size: int) -> pa.RecordBatchReader:
        """The rows, `size` at a time."""

        def batches() -> Iterator[pa.RecordBatch]:
            for path in self._paths:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(size)
                path.unlink()

        return pa.RecordBatchReader.from_batches(pq.read_schema(self._paths[0]), batches())


def _rewrite(table: ParquetTable, number: int, path: Path) -> None:
    """The rows of one file of a table in the types of the table, and where they come from."""
    fields = [*table.schema, pa.field("_file", pa.int32()), pa.field("_row", pa.int64())]
    one = replace(table, paths=(table.paths[number],), num_rows=(table.num_rows[number],))
    with pq.ParquetWriter(path, pa.schema(fields)) as writer:
        for block in one.blocks():
            rows = block.rows
            row = np.arange(block.first, block.first + len(rows))
            rows = rows.append_column("_file", pa.array(np.full(len(rows), number, np.int32)))
            writer.write_batch(rows.append_column("_row", pa.array(row)))


def _is_numbering(expression: exp.Expression) -> bool:
    window = expression.find(exp.Window)
    return window is not None and not window.args.get("partition_by")
