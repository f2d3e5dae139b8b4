"""Files that the benchmark of sharding plans leaves behind."""

from pathlib import Path

import tomli_w

from cdp_torchrec.planning.measured.comparison import Comparison
from cdp_torchrec.planning.measured.figure import draw_estimates
from cdp_torchrec.planning.measured.table import as_json, as_markdown
from cdp_torchrec.whole_file import whole_file, write_json, write_whole


def write_outputs(comparison: Comparison) -> None:
    """Write the files that the configuration asks for; on one rank."""
    config = comparison.setting.config.benchmark
    if config.output is not None:
        write_whole(config.output / "plans.md", as_markdown(comparison) + "\n")
        write_json(config.output / "plans.json", as_json(comparison))
        with whole_file(config.output / "plans.png") as partial:
            draw_estimates(comparison, partial)
    if config.output_hardware is not None:
        write_hardware(comparison, config.output_hardware)


def write_hardware(comparison: Comparison, path: Path) -> None:
    """Write the hardware with the fitted bandwidths, for sharding.hardware.

    Args:
        comparison: what was fitted, and where.
        path: the file.
    """
    setting, fitted = comparison.setting, ", ".join(comparison.fit.slowdown) or "nothing"
    origin = (
        f"# Fitted by launch/benchmark.py plans: {fitted}.\n"
        f"# Measured on {setting.world_size} ranks of {setting.num_nodes} node(s), "
        f"{setting.batch_size} impressions per rank, sparse optimizer "
        f"{setting.config.optimizer.sparse.kind}. The rest is not measured.\n"
    )
    values = comparison.hardware.model_dump(mode="json", exclude_none=True)
    write_whole(path, origin + tomli_w.dumps(values))
