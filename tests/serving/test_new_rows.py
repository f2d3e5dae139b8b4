"""New rows of a mapped log get the scores that the same rows have in the test split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdp_torchrec.commands import prepare_data
from cdp_torchrec.experiment_config import ExperimentConfig
from cdp_torchrec.serving.predict import predict_file
from cdp_torchrec.serving.predict_config import PredictConfig
from cdp_torchrec.stored_run import evaluate_run, open_run
from tests.data.mapped_logs import DAY, START, write_csv
from tests.data.trivago_events import Rows
from tests.runs import one_rank
from tests.serving.conftest import CPU, export_untuned, short_run

MAPPING = f"""
name = "shop"
source = "made at random"
category = "category_id"
tables.log = {{files = ["log.csv"]}}
tables.items = {{files = ["items.csv"], by = "item", key = "id"}}
tables.users = {{files = ["users.csv"], by = "user", key = "id"}}
behaviours.click = {{}}
split.test_from = "{np.datetime64(START + 6 * DAY, "s")}"

[log]
table = "log"
rows = "impression"
user = "user"
item = "item"
request = ["page"]
time = {{column = "time", unit = "s"}}
label = {{column = "clicks", one_of = ["yes"]}}
only = {{column = "user", filled = true}}

[features.category_id]
role = "item"
level = "candidate"
kind = "id"
table = "items"
column = "category"

[features.price]
role = "item"
level = "candidate"
kind = "number"

[features.position]
role = "context"
level = "candidate"
kind = "id"
derive = "position"

[features.hour]
role = "context"
level = "request"
kind = "id"
derive = "hour"

[features.likes]
role = "user"
level = "request"
kind = "ids"
table = "users"
separator = "|"
"""


def pages(rng: np.random.Generator) -> Rows:
    """A week of lists of one to five items; some rows have no user, some no price."""
    rows = []
    for page, hour in enumerate(rng.integers(0, 7 * 24, size=400)):
        for item in rng.permutation(20)[: rng.integers(1, 6)]:
            rows.append(
                {
                    "page": f"p{page}",
                    "user": f"u{page % 30}" if page % 50 else "",
                    "time": START + 3600 * int(hour) + page,
                    "item": f"i{item}",
                    "price": "" if rng.random() < 0.1 else f"{rng.random():.3f}",
                    "clicks": "yes" if rng.random() < 0.1 + 0.04 * item else "no",
                }
            )
    return rows


def write_log(folder: Path, rows: Rows) -> None:
    write_csv(folder / "log.csv", rows)
    items = [{"id": f"i{n}", "category": f"c{n % 3}"} for n in range(18)]
    write_csv(folder / "items.csv", items)
    likes = [{"id": f"u{n}", "likes": "|".join(["hats", "shoes"][: n % 3])} for n in range(25)]
    write_csv(folder / "users.csv", likes)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_new_rows_get_the_scores_of_the_test_split(tmp_path: Path) -> None:
    rows = pages(np.random.default_rng(0))
    (tmp_path / "shop.toml").write_text(MAPPING)
    write_log(tmp_path / "log", rows)
    new = [row for row in rows if row["time"] >= START + 6 * DAY]
    write_log(tmp_path / "new", [{k: v for k, v in r.items() if k != "clicks"} for r in new])
    mapping, dataset = str(tmp_path / "shop.toml"), tmp_path / "data"
    log = ["--input", str(tmp_path / "log"), "--output", str(dataset)]
    prepare_data.main(["generic", mapping, *log])
    file = tmp_path / "new.parquet"
    new_rows = ["--input", str(tmp_path / "new"), "--output", str(file)]
    prepare_data.main(["requests", str(dataset), *new_rows, "--mapping", mapping])

    run_dir = short_run(dataset, tmp_path / "run", "twin", vocabulary=(), batch_size=64)
    artifact = export_untuned(run_dir, tmp_path / "artifact")
    config = PredictConfig(output=tmp_path / "scores.parquet", history_store=dataset)
    with one_rank():
        run = open_run(run_dir, (), ExperimentConfig)
        evaluate_run(run, CPU, output=tmp_path / "eval", write_predictions=True)
        predicted = predict_file(artifact, file, config)
    assert predicted.unread == []
    assert predicted.empty_histories < 0.5
    names = ["request_id", "user_id", "item_id"]
    measured = pq.read_table(tmp_path / "eval" / "predictions.parquet")
    scores = pq.read_table(config.output)
    assert scores.select(names).to_pylist() == measured.select(names).to_pylist()
    found, expected = (t["probability"].to_numpy() for t in (scores, measured))
    assert len({*found.round(4)}) > len(found) // 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
