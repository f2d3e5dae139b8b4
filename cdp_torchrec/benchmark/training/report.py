"""Training speeds as text and as JSON."""

from typing import Any

from cdp_torchrec.benchmark.training.rounds import TrainingSpeed
from cdp_torchrec.text_table import markdown_table


def as_markdown(speed: TrainingSpeed) -> str:
    """Speed of every row, and where its time goes."""
    base = next(iter(speed.rounds))
    kinds = list(dict.fromkeys(kind for shares in speed.shares.values() for kind in shares))
    header = ["row", "impressions/s", "slowest", "fastest", f"x {base}", "reading ms", *kinds]
    rows = []
    for name, found in speed.rounds.items():
        # Of the same rounds: a speed is the inverse of a time.
        ratio = speed.rounds[base].ratio_to(found)
        rates = (found.median, found.slowest, found.fastest)
        rows.append(
            [
                name,
                *(f"{speed.impressions_per_s(ms):,.0f}" for ms in rates),
                f"{ratio:.2f}",
                _reading(speed, name, found.median),
                *(f"{speed.shares[name].get(kind, 0.0):.0%}" for kind in kinds),
            ]
        )
    settings = speed.settings
    return (
        f"{speed.world_size} ranks ({speed.device}), global batch {speed.global_batch_size}. "
        f"Medians of {settings.rounds} alternating rounds of {settings.steps} steps on batches in "
        "memory; to read a batch, and as a share of a step; shares of a step on rank 0.\n\n"
        f"{markdown_table(header, rows)}"
    )


def _reading(speed: TrainingSpeed, name: str, round_ms: float) -> str:
    if name not in speed.reading_ms:  # plain tables read what the sharded ones do
        return "-"
    reading = speed.reading_ms[name]
    return f"{reading:.1f} ({reading * speed.settings.steps / round_ms:.1%})"


def as_json(speed: TrainingSpeed) -> dict[str, Any]:
    """The same numbers for programs, with those of every round."""
    base = next(iter(speed.rounds.values()))
    return {
        "settings": speed.settings.model_dump(mode="json"),
        "world_size": speed.world_size,
        "device": speed.device,
        "global_batch_size": speed.global_batch_size,
        "reading_ms": dict(speed.reading_ms),
        "rows": {
            name: {
                "impressions_per_s": [speed.impressions_per_s(ms) for ms in found.ms.tolist()],
                "median_impressions_per_s": speed.impressions_per_s(found.median),
                "ratio": base.ratio_to(found),
                "shares": dict(speed.shares[name]),
            }
            for name, found in speed.rounds.items()
        },
    }
