"""One thread per process, so that tests and ranks share the cores; and one small dataset."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the first import of torch

from cdp_torchrec.environment import quiet_libraries

quiet_libraries()


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 2,000 training requests of 8 candidates, of 300 users; do not write into it."""
    from cdp_torchrec.data.synthetic import make_synthetic
    from cdp_torchrec.data.synthetic_config import SyntheticConfig

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
