"""A run on an appended day goes out as a delta of the day before."""

from pathlib import Path

import numpy as np
import pytest

from cdp_torchrec.config import ConfigError
from cdp_torchrec.experiment import train
from cdp_torchrec.serving.artifact import read_manifest
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.delta_export import delta_between
from cdp_torchrec.serving.export import raw_test_requests
from cdp_torchrec.serving.predictor import Predictor
from tests.conftest import MakeOnce
from tests.data.test_append import fill
from tests.run.test_grown_tables import CPU, FIRST_DAY, SECOND_DAY, configured
from tests.runs import one_rank
from tests.serving.conftest import export_untuned, short_run


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_the_delta_of_a_day_is_its_full_export_with_new_ids(
    make_once: MakeOnce, tmp_path: Path
) -> None:
    dataset = make_once("appended", fill) / "grown"
    base, day, delta = (tmp_path / name for name in ("base", "day", "delta"))
    with one_rank():
        train(configured(dataset, tmp_path / "run", *FIRST_DAY), CPU)
        fork = f"run.fork_from={tmp_path / 'run'}"
        train(configured(dataset, day, *SECOND_DAY, fork), CPU)
    export_untuned(tmp_path / "run", base)
    with pytest.raises(ConfigError, match=r"export\.tables: 'float32' in the base, 'int8' in"):
        export_untuned(day, delta, "export.tables=int8", delta_from=base)
    export_untuned(day, delta, delta_from=base)
    before = Predictor.open(base, history_store=dataset)
    patched = before.apply(delta)
    full = Predictor.open(export_untuned(day, tmp_path / "full"), history_store=dataset)
    with pytest.raises(ConfigError, match="the base must be the earlier one"):
        delta_between(base, tmp_path / "full", tmp_path / "back", signing_key=None)
    assert not (tmp_path / "back").exists()
    sizes = [p.tables.num_embeddings("item") for p in (before, patched, full)]
    assert sizes[0] < sizes[1] == sizes[2]
    assert not (delta / "vocabulary").exists() and any(delta.glob("days/*/vocabulary/item.parquet"))
    for request in raw_test_requests(ExportedConfig.read(tmp_path / "full")):
        np.testing.assert_array_equal(patched.score(request), full.score(request))


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_rows_that_changed_owners_go_out_with_their_owners(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    rule = 'managed_collision={zch_size=64,buckets=4,eviction_interval=2,eviction_policy="lru"}'
    entities = [f"data.vocabulary.{name}={{{rule}}}" for name in ("item", "user")]
    every = "trainer.checkpoint_every_steps=20"
    # Few ids a step, so that some were seen later than others.
    run = short_run(
        tiny_dataset, tmp_path / "run", "din", every, vocabulary=entities, batch_size=16
    )
    early, late = sorted((run / "checkpoints").iterdir())
    base = export_untuned(early, tmp_path / "base")
    delta = export_untuned(late, tmp_path / "delta", delta_from=base)
    for artifact in (base, delta):
        assert read_manifest(artifact).parity["max_difference"] < 1e-6
    before = Predictor.open(base, history_store=tiny_dataset)
    patched = before.apply(delta)
    for entity in ("item", "user"):
        owners = [predictor.tables.owners(entity) for predictor in (before, patched)]
        assert owners[0] is not None and owners[1] is not None
        assert (owners[0] >= 0).sum() > 30 and (owners[0] != owners[1]).any()
