"""A small benchmark of plans."""

from pathlib import Path

from tests.paths import CONFIGS


def settings(dataset: Path, *more: str) -> list[str]:
    """Arguments of `benchmark.py plans`."""
    return [
        str(CONFIGS / "interest" / "pooled.toml"),
        f"data.dir={dataset}",
        "model.embedding_dim=8",
        "trainer.global_batch_size=64",
        "benchmark.rounds=1",
        "benchmark.steps=2",
        *more,
    ]
