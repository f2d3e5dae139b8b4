"""Spark makes of the same staging files what DuckDB makes of them."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.data.manifest import MANIFEST
from cdp_torchrec.data.prepare.staging import EngineLimits, build_dataset
from cdp_torchrec.data.schema import DatasetError
from tests.data.attributed_log import SPEC as ATTRIBUTED
from tests.data.attributed_log import stage_attributed
from tests.data.staged_log import SPEC, behaviour, request, stage
from tests.paths import ROOT

pytestmark = pytest.mark.slow
_SETTINGS = {
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    # Compiling a plan takes longer than running it on a handful of rows.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    # Two, so that rows come from several executors' files.
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
}


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    sql = pytest.importorskip("pyspark.sql", reason="the extra `spark` is not installed")
    builder = sql.SparkSession.builder.master("local[2]")
    for name, value in _SETTINGS.items():
        builder = builder.config(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the executors
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = builder.getOrCreate()
        yield
        session.stop()


def _contents(dataset: Path) -> dict[str, bytes]:
    named = (MANIFEST, "starter.toml")  # the first has checksums of the rest, the other its path
    return {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in dataset.rglob("*")
        if path.is_file() and path.name not in named
    }


@pytest.mark.usefixtures("_cluster")
def test_spark_writes_byte_for_byte_what_duckdb_writes(tmp_path: Path) -> None:
    staging = stage_attributed(tmp_path / "staging", range(4))
    build_dataset(staging, tmp_path / "duckdb", ATTRIBUTED)
    build_dataset(staging, tmp_path / "spark", ATTRIBUTED, EngineLimits(engine="spark"))
    expected, found = _contents(tmp_path / "duckdb"), _contents(tmp_path / "spark")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.usefixtures("_cluster")
def test_spark_names_file_and_row_of_a_mistake(tmp_path: Path) -> None:
    staging = stage(tmp_path / "staging", [request(0), request(1, label=[0, 2])], [behaviour()])
    with pytest.raises(DatasetError, match=r"part-0.parquet: row 1 \(request_id r1\).*0 and 1"):
        build_dataset(staging, tmp_path / "spark", SPEC, EngineLimits(engine="spark"))
    assert not (tmp_path / "spark").exists()


@pytest.mark.usefixtures("_cluster")
def test_a_damaged_file_that_an_executor_reads_is_named(tmp_path: Path) -> None:
    staging = stage(tmp_path / "staging", [request(0)], [behaviour()])
    path = staging / "behaviours" / "part-0.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 3000), path, compression="none")
    damaged = bytearray(path.read_bytes())
    damaged[4:60] = bytes(56)
    path.write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"behaviours/part-0\.parquet"):
        build_dataset(staging, tmp_path / "spark", SPEC, EngineLimits(engine="spark"))
