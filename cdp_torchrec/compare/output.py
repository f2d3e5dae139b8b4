"""Writes a table beside its cells: table.md, table.json, gauc.png."""

import json
import os

from cdp_torchrec.compare.cells import Table
from cdp_torchrec.compare.figure import draw_gauc
from cdp_torchrec.compare.summary import summarize
from cdp_torchrec.compare.tables import as_json, markdown


def write_table(table: Table) -> str:
    """Write the table of all finished cells, also of those that other processes have run.

    Returns:
        The Markdown.

    Raises:
        ConfigError: the cells of a dataset are of different test splits.
    """
    summaries = [summarize(table, dataset) for dataset in table.config.datasets]
    text = markdown(
        summaries,
        reference=table.config.reference,
        num_seeds=len(table.config.seeds),
        caption=table.config.caption,
    )
    table.run_dir.mkdir(parents=True, exist_ok=True)
    # Processes that share the work write the same files: each its own, then one rename.
    partial = table.run_dir / f".table.partial-{os.getpid()}"
    partial.write_text(text)
    partial.rename(table.run_dir / "table.md")
    partial.write_text(json.dumps(as_json(summaries), indent=2))
    partial.rename(table.run_dir / "table.json")
    if any(summary.rows for summary in summaries):
        draw_gauc(summaries, partial)
        partial.rename(table.run_dir / "gauc.png")
    return text
