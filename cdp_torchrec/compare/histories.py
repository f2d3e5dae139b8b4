"""What each row sees of the history, and whether all rows see the same."""

from collections import defaultdict
from collections.abc import Mapping

from cdp_torchrec.compare.config import CompareConfig
from cdp_torchrec.compare.search import GridPoint
from cdp_torchrec.experiment_config import ExperimentConfig


def longest_sequence(config: ExperimentConfig) -> int | None:
    """Behaviours of the longest sequence that a row reads; None: it has none, or pools all."""
    return config.model.interest.history.longest_sequence(config.data.history.max_length)


def describe_history(config: ExperimentConfig) -> str:
    """What a row reads of the history, in words."""
    history, kept = config.model.interest.history, config.data.history.max_length
    parts = []
    if history.pool_segments is not None:
        parts.append("gated, pooled: all")
    if history.gated:
        parts.append(f"gated: last {kept}")
    if history.recent:
        parts.append(f"recent: last {history.longest_recent(kept)}")
    parts += [f"{key} = {number}" for key, number in config.model.interest.searches.items()]
    dayparts = config.data.history.dayparts
    if config.model.interest.reads_time_of_day and dayparts > 1:
        parts.append(f"{dayparts} parts of the day")
    if config.model.interaction.history_counts:
        parts.append("counts: all" + (", by age" if config.data.history.count_ages else ""))
    return "; ".join(parts) or "none"


def unequal_histories(
    config: CompareConfig, configs: Mapping[tuple[str, str, GridPoint], ExperimentConfig]
) -> dict[str, list[str]]:
    """Rows that see less than others, or all of what they would search; with their cells."""
    longest: dict[str, int] = defaultdict(int)
    for (dataset, _, _), cell in configs.items():
        longest[dataset] = max(longest[dataset], longest_sequence(cell) or 0)
    found: dict[str, list[str]] = defaultdict(list)
    differing = set()
    for (dataset, model, point), cell in configs.items():
        for line in _differences(model, cell, longest[dataset]):
            differing.add(model)
            if model not in config.other_history:
                found[line].append(f"{dataset}/{model}/{point.name}")
    for model in config.other_history:
        if model not in differing:
            found[f"other_history: '{model}' sees the same history as all others"].append(model)
    return found


def _differences(model: str, config: ExperimentConfig, longest: int) -> list[str]:
    own = longest_sequence(config)
    if own is None:
        return []
    advice = f"or name '{model}' in other_history"
    lines = [
        f"model.interest.{key} = {number}: no search happens among {own} behaviours; raise "
        f"data.history.max_length, {advice}"
        for key, number in config.model.interest.searches.items()
        if number >= own
    ]
    if own < longest:
        lines.append(
            f"{model} reads the last {own} behaviours, others {longest}: rows of a comparison see "
            f"the same; lengthen its history, {advice}"
        )
    return lines
