"""What the README tells a newcomer to type does what it says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from cdp_torchrec.data.schema import load_schema
from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
PREPARE, PLAIN_PYTORCH, DLRM = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def write_staging(folder: Path) -> None:
    """Two weeks of a small click log in the form that the README asks for."""
    rng = np.random.default_rng(0)
    count, candidates = 200, 5
    start, day = 1_748_649_600_000 - 10 * 86_400_000, 86_400_000
    items = rng.integers(0, 30, (count, candidates))
    requests = {
        "request_id": [f"r{n}" for n in range(count)],
        "user_id": [f"u{n}" for n in rng.integers(0, 20, count)],
        "timestamp": np.sort(start + rng.integers(0, 14 * day, count)),
        "query_id": [f"q{n}" for n in rng.integers(0, 5, count)],
        "hour": [str(n) for n in rng.integers(0, 24, count)],
        "item_id": [[f"i{n}" for n in row] for row in items],
        "category_id": [[f"c{n % 3}" for n in row] for row in items],
        "log_price": [[float(n) for n in row] for row in items],
        "label": [[int(n) for n in row] for row in rng.integers(0, 2, (count, candidates))],
    }
    touched = rng.integers(0, 30, 500)
    behaviours = {
        "user_id": [f"u{n}" for n in rng.integers(0, 20, 500)],
        "item": [f"i{n}" for n in touched],
        "category": [f"c{n % 3}" for n in touched],
        "action": ["click"] * 500,
        "timestamp": start + rng.permutation(14 * day // 1000)[:500] * 1000,
    }
    for name, columns in (("requests", requests), ("behaviours", behaviours)):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / name / "part-0.parquet")


def test_the_example_for_own_data_makes_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_staging(tmp_path / "staging")
    exec(PREPARE, {})
    schema = load_schema(tmp_path / "data" / "mine")
    assert schema.splits["train"].requests + schema.splits["test"].requests == 200
    assert schema.splits["test"].first_timestamp >= 1_748_649_600_000
    assert schema.history.num_behaviours == 500


def test_the_example_in_plain_pytorch_trains_every_parameter() -> None:
    names: dict[str, Any] = {}
    exec(PLAIN_PYTORCH, names)
    model = names["model"]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert torch.isfinite(names["loss"])


def test_the_example_with_torchrecs_dlrm_trains_every_parameter() -> None:
    names: dict[str, Any] = {}
    exec(DLRM, names)
    batch_size, rows, dim = 8, 50, 16
    features = {
        "user": ["user"],
        "query": ["query"],
        "item": ["item", "history"],
        "category": ["category"],
    }
    tables = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{table}", embedding_dim=dim, num_embeddings=rows, feature_names=keys
            )
            for table, keys in features.items()
        ]
    )
    model = names["DLRMWithCdp"](tables, dense_in_features=5, dim=dim)
    one, few = torch.ones(batch_size, dtype=torch.int64), torch.arange(batch_size) % 3
    lengths = torch.cat([one, one, one, few, one])
    sparse = KeyedJaggedTensor(
        ["user", "query", "item", "history", "category"],
        torch.randint(rows, (int(lengths.sum()),)),
        lengths=lengths,
    )
    logits, losses = model(torch.randn(batch_size, 5), sparse, torch.arange(batch_size))
    weights = model.cdp.loss_weights
    loss = logits.sum() + sum(weight * losses[name].mean() for name, weight in weights.items())
    loss.backward()
    assert logits.shape == (batch_size,)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_every_file_that_the_readme_names_exists() -> None:
    paths = set(re.findall(r"\b(?:launch|configs|cdp_torchrec|tests)/[\w/.]*\w\b", README))
    paths |= {f"cdp_torchrec/{p}" for p in re.findall(r"`((?:\w+/)*\w+\.py)`", README)}
    missing = [
        p for p in paths if not (ROOT / p).exists() and not p.startswith("cdp_torchrec/launch")
    ]
    assert missing == []


def test_functions_of_the_equation_table_exist() -> None:
    for file, names in re.findall(r"`(\w+/\w+\.py)`: ((?:`[\w.]+`(?:, )?)+)", README):
        text = (ROOT / "cdp_torchrec" / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                assert re.search(rf"(class|def) {part}\b", text), (file, name)
