"""What a cell was measured on belongs to it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.compare import run
from cdp_torchrec.compare.cells import load_table
from cdp_torchrec.compare.run import run_table
from cdp_torchrec.config import ConfigError
from cdp_torchrec.data.config import SoftLabelsConfig
from tests.compare.conftest import CPU, arguments, copied


def test_cells_of_another_preparation_are_not_mixed_in(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    table = load_table(copied(finished, tmp_path))
    cell = table.tuning_cells("tiny", "pooled")[0].file
    content = json.loads(cell.read_text())
    content["origin"]["files"] = "0"
    cell.write_text(json.dumps(content))
    said = "seed-0.json: was measured on other files than .* has now"
    with pytest.raises(ConfigError, match=said):
        run_table(table, CPU)


def test_cells_of_another_teacher_are_not_mixed_in_wherever_its_file_lies(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config = load_table(arguments(*finished)).any_config("tiny")
    clicks = np.arange(5, dtype=np.float32) % 2
    found = []
    for name, probability in (("a", clicks), ("moved", clicks), ("other", 1 - clicks / 2)):
        file = tmp_path / name
        pq.write_table(pa.table({"label": clicks, "probability": probability}), file)
        data = config.data.model_copy(update={"soft_labels": SoftLabelsConfig(file=file)})
        found.append(run._origin(config.model_copy(update={"data": data})))
    own, moved, other = found
    assert own == moved
    assert own.config == other.config and own.files != other.files
