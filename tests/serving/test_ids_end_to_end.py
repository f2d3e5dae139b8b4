"""Hashed ids, and numbers and tags of behaviours: from a mapped log to a server's answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.config import load_config
from cdp_torchrec.experiment import train_experiment
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.serving.artifact import read_manifest
from cdp_torchrec.serving.config import ExportedConfig
from cdp_torchrec.serving.export import raw_test_requests
from cdp_torchrec.serving.golden import stored_behaviours
from cdp_torchrec.serving.parts import open_store, open_vocabularies
from cdp_torchrec.serving.predictor import Predictor
from cdp_torchrec.serving.request import Request
from cdp_torchrec.serving.request_file import RequestFiles
from cdp_torchrec.serving.server.body import read_inference
from cdp_torchrec.serving.server.protocol import input_specs, to_infer_request, to_request
from tests.data.mapped_logs import DAY, IMPRESSIONS, START, impression, write_csv
from tests.data.test_generic_attributes import ATTRIBUTES
from tests.paths import CONFIGS
from tests.runs import one_rank
from tests.serving.conftest import export_untuned

SETTINGS = (
    "data.vocabulary.user={hash_bucket_size=20, hash_seed=1}",
    "data.vocabulary.item={hash_bucket_size=40}",
    "data.vocabulary.tag={hash_bucket_size=4}",
    "model.embedding_dim=8",
    "optimizer.sparse.kind=rowwise_adagrad",
    "optimizer.sparse.lr=0.1",
    "trainer.global_batch_size=64",
    "optimizer.dense.lr=0.01",
    "trainer.max_epochs=6",
)


def write_shop(folder: Path) -> None:
    """Users click on what they have looked at for long, and on nothing else."""
    rng = np.random.default_rng(0)
    views, pages = [], []
    for user in range(40):
        long = rng.choice(30, size=5, replace=False)
        for item in rng.permutation(30)[:15]:
            seconds = "" if rng.random() < 0.1 else f"{rng.exponential(60 if item in long else 3)}"
            views.append(
                {
                    "who": f"u{user}",
                    "what": f"i{item}",
                    "kind": "hats",
                    "when": START + int(rng.integers(3600)),
                    "seconds": seconds,
                    "shop": f"s{item % 3}",
                }
            )
        for page in range(12):
            for item in rng.permutation(30)[:4]:
                pages.append(
                    impression(
                        100 * user + page,
                        f"i{item}",
                        user=f"u{user}",
                        time=START + 4000 + 14_000 * page,
                        category="hats",
                        clicks=int(item in long and rng.random() < 0.8),
                    )
                )
    write_csv(folder / "log.csv", pages)
    write_csv(folder / "views.csv", views)
    items = [{"id": f"i{i}", "labels": "|".join(["new", "red"][: i % 3])} for i in range(30)]
    write_csv(folder / "items.csv", items)
    text = IMPRESSIONS.replace('"2025-06-02"', f'"{_day_after(START)}"') + ATTRIBUTES
    (folder / "mapping.toml").write_text(text)


def _day_after(start: int) -> str:
    return str(np.datetime64(start + DAY, "s"))


def as_row(request: Request) -> dict[str, Any]:
    """A row of a file of requests that bring their behaviours along."""
    history = request.history
    assert history is not None
    columns = {"item": history.item, "timestamp": history.timestamp_ms}
    columns |= {"category": history.category, "action": history.action, **history.attributes}
    return {
        "request_id": request.request_id,
        "user_id": request.user,
        "timestamp": request.timestamp_ms,
        **request.features,
        **request.candidates,
        **{f"history_{name}": values for name, values in columns.items()},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_a_mapped_log_with_such_ids_is_trained_exported_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shop(tmp_path / "log")
    dataset = tmp_path / "data"
    mapping = str(tmp_path / "log" / "mapping.toml")
    prepare_data.main(
        ["generic", mapping, "--input", str(tmp_path / "log"), "--output", str(dataset)]
    )
    run_dir = tmp_path / "run"
    layers = [str(CONFIGS / "interest" / "twin.toml"), f"data.dir={dataset}", *SETTINGS]
    with one_rank():
        config = load_config(ExperimentConfig, [*layers, f"run.dir={run_dir}"])
        report = train_experiment(config, torch.device("cpu"), num_bootstrap=0).report
    assert report.auc > 0.6
    said = "".join(capsys.readouterr())
    assert "data.vocabulary.user.hash_bucket_size = 20: of 40 ids" in said
    artifact = export_untuned(run_dir, tmp_path / "artifact")
    assert read_manifest(artifact).parity["max_difference"] < 1e-6
    predictor = Predictor.open(artifact, history_store=dataset)
    config = ExportedConfig.read(artifact)
    requests = raw_test_requests(config)[:20]
    schema = predictor._schema
    store = open_store(dataset, schema, artifact)
    vocabularies = open_vocabularies(artifact, schema)
    specs = input_specs(predictor.metadata)
    moved, brought = 0.0, []
    for request in requests:
        expected = predictor.score(request)
        behaviours = stored_behaviours(request, store, schema.history, vocabularies, at_most=1000)
        assert {"dwell_s", "shop_id", "tags"} == behaviours.attributes.keys()
        inline = replace(request, history=behaviours)
        brought.append(inline)
        np.testing.assert_allclose(predictor.score(inline), expected, rtol=0, atol=1e-6)
        body = json.dumps(to_infer_request(inline, predictor.metadata)).encode()
        asked = to_request(read_inference(body, json_length=None, most_values=10**6), specs)
        np.testing.assert_allclose(predictor.score(asked), expected, rtol=0, atol=1e-6)
        without = replace(inline, history=replace(behaviours, attributes={}))
        moved = max(moved, float(np.abs(predictor.score(without) - expected).max()))
    # The attributes say something to the model.
    assert moved > 1e-3
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.Table.from_pylist([as_row(request) for request in brought]), path)
    files = RequestFiles(path, predictor.metadata, keep=())
    (chunk,) = files.chunks(0, 1)
    for request, read in zip(brought, files.requests(chunk), strict=True):
        np.testing.assert_array_equal(predictor.score(read), predictor.score(request))
