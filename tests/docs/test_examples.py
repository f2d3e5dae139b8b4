"""What the examples in Python make: a dataset, and models that train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from cdp_torchrec.data.prepare.arrivals.messages import row_formats
from cdp_torchrec.data.schema import load_schema
from cdp_torchrec.interest.cdp_evidence import EvidenceCdp
from tests.docs.logs import write_staging
from tests.docs.pages import blocks_of
from tests.paths import ROOT


def example(page: str, word: str) -> str:
    """The Python block of a page that has this word."""
    found = [b.text for b in blocks_of(ROOT / page) if b.language == "python" and word in b.text]
    assert len(found) == 1
    return found[0]


def test_the_example_for_own_data_makes_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_staging(tmp_path / "staging")
    names: dict[str, Any] = {}
    exec(example("README.md", "build_dataset"), names)
    schema = load_schema(tmp_path / "data" / "mine")
    assert schema.splits["train"].requests + schema.splits["test"].requests == 200
    assert schema.splits["test"].first_timestamp >= 1_748_649_600_000
    assert schema.history.num_behaviours == 500
    formats = row_formats(names["spec"], has_probability=False)
    page = blocks_of(ROOT / "cdp_torchrec/data/prepare/arrivals/README.md")
    messages = [block.text.encode() for block in page if block.language == "json"]
    for rows, message in zip(formats.values(), messages, strict=True):
        assert rows.table([rows.decode(message)]).num_rows == 1


def test_the_example_in_plain_pytorch_trains_every_parameter() -> None:
    names: dict[str, Any] = {}
    exec(example("cdp_torchrec/interest/README.md", "class Ranker"), names)
    model = names["model"]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert torch.isfinite(names["loss"])
    assert isinstance(model.cdp, EvidenceCdp)
    assert model.cdp.loss_weights == {"noise_loss": 10.0}
    history = names["history"]
    part = names["random_part"](history)
    assert 0 < ((part > 0).sum(1) < (history > 0).sum(1)).sum()
    assert torch.equal(part[part > 0], history[part > 0])


def test_the_example_with_sequences_scores_each_request_as_if_it_were_alone() -> None:
    names: dict[str, Any] = {}
    exec(example("cdp_torchrec/interest/README.md", "class SequenceRanker"), names)
    model = names["model"]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    reached = model.item.weight.grad.abs().sum(1).nonzero().squeeze(1)
    assert reached.tolist() == [4, 5, 6, 7, 8, 9]  # 8 was never a candidate
    alone = names["index_of"]([[5]], [[60.0]], num_candidates=[3])
    torch.testing.assert_close(model(torch.tensor([5, 6, 7]), alone), names["logits"][2:])


def test_the_example_with_torchrecs_dlrm_trains_every_parameter() -> None:
    names: dict[str, Any] = {}
    exec(example("cdp_torchrec/interest/README.md", "class DLRMWithCdp"), names)
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
    logits = model(torch.randn(batch_size, 5), sparse)
    assert not model.cdp.loss_weights
    logits.sum().backward()
    assert logits.shape == (batch_size,)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
