"""One small synthetic dataset for all tests that read a dataset directory."""

from pathlib import Path

import pytest

from cdp_torchrec.data.synthetic import make_synthetic
from cdp_torchrec.data.world import SyntheticConfig


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 2,000 training requests of 8 candidates, of 300 users; do not write into it."""
    dataset = tmp_path_factory.mktemp("data") / "tiny"
    config = SyntheticConfig(
        num_users=300,
        num_categories=4,
        items_per_category=30,
        history_days=10,
        train_days=7,
        num_candidates=8,
    )
    make_synthetic(config, dataset)
    return dataset
