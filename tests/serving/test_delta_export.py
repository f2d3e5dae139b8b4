"""A run on an appended day goes out as a delta of the day before."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.experiment import train
from cdp_torchrec.serving import export
from cdp_torchrec.serving.artifact import RANKER, read_manifest
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.export import raw_test_requests
from cdp_torchrec.serving.predictor import Predictor
from tests.conftest import MakeOnce
from tests.data.test_append import fill
from tests.run.test_grown_tables import CPU, FIRST_DAY, SECOND_DAY, configured
from tests.runs import one_rank
from tests.serving.conftest import export_untuned


@pytest.mark.slow
def test_the_delta_of_a_day_is_its_full_export_with_new_ids(
    make_once: MakeOnce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_once("appended", fill) / "grown"
    base, day, delta = (tmp_path / name for name in ("base", "day", "delta"))
    with one_rank():
        train(configured(dataset, tmp_path / "run", *FIRST_DAY), CPU)
        fork = f"run.fork_from={tmp_path / 'run'}"
        train(configured(dataset, day, *SECOND_DAY, fork), CPU)
    export_untuned(tmp_path / "run", base)
    monkeypatch.setattr(export, "make_artifact", None)
    with pytest.raises(ConfigError, match=r"export\.tables: 'float32' in the base, 'int8' in"):
        export_untuned(day, delta, "export.tables=int8", delta_from=base)
    monkeypatch.undo()
    export_untuned(day, delta, delta_from=base)

    before = Predictor.open(base, history_store=dataset)
    patched = before.apply(delta)
    monkeypatch.setattr(export, "export_ranker", lambda *a, **_: shutil.copy(delta / RANKER, a[3]))
    full = Predictor.open(export_untuned(day, tmp_path / "full"), history_store=dataset)
    assert patched.metadata == full.metadata
    assert patched.metadata.version == read_manifest(delta).version
    sizes = [p.tables.num_embeddings("item") for p in (before, patched, full)]
    assert sizes[0] < sizes[1] == sizes[2]
    assert not (delta / "vocabulary").exists() and any(delta.glob("days/*/vocabulary/item.parquet"))
    for request in raw_test_requests(ExportedConfig.read(tmp_path / "full")):
        np.testing.assert_array_equal(patched.score(request), full.score(request))
