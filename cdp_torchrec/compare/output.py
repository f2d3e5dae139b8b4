"""Writes a table beside its cells: table.md, table.json, chances.md, gauc.png, gains.png."""

from cdp_torchrec.compare.cells import Table
from cdp_torchrec.compare.chances import chances_markdown
from cdp_torchrec.compare.figure import draw_gains, draw_gauc
from cdp_torchrec.compare.gains import find_gains
from cdp_torchrec.compare.summary import summarize
from cdp_torchrec.compare.tables import as_json, markdown, provenance
from cdp_torchrec.whole_file import whole_file, write_json, write_whole


def write_table(table: Table) -> str:
    """Write the table of all finished cells, also of those that other processes have run.

    Returns:
        The Markdown.

    Raises:
        ConfigError: the cells of a dataset are of different test splits.
    """
    summaries = [summarize(table, name) for name in (*table.config.groups, *table.config.datasets)]
    panels = find_gains(table.config, summaries)
    made_by = provenance(summaries, table=table)
    text = markdown(summaries, table=table, made_by=made_by)
    write_whole(table.run_dir / "chances.md", chances_markdown(table) + "\n")
    # Processes that share the work write the same files.
    write_whole(table.run_dir / "table.md", text)
    write_json(table.run_dir / "table.json", as_json(summaries, panels, made_by=made_by))
    if any(summary.rows for summary in summaries):
        with whole_file(table.run_dir / "gauc.png") as partial:
            draw_gauc(summaries, partial)
    if panels:
        with whole_file(table.run_dir / "gains.png") as partial:
            draw_gains(panels, partial)
    return text
