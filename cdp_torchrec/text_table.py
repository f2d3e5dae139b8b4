"""Tables of text: Markdown for pages, aligned columns for terminals. Cells are shown as given."""

from collections.abc import Collection, Sequence

from tabulate import tabulate


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table of GitHub's Markdown whose source is aligned, too.

    Args:
        header: titles of the columns.
        rows: as long as the header.
        left: columns of text, aligned to the left; all others to the right.
    """
    return tabulate(
        rows,
        headers=header,
        tablefmt="pipe",
        colalign=_alignments(header, left),
        disable_numparse=True,
    )


def aligned_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Columns two spaces apart, without lines; no space at the end of a line.

    Args:
        rows: all of one length; the titles of the columns are the first.
        left: columns of text, aligned to the left; all others to the right.
    """
    return tabulate(
        rows, tablefmt="plain", colalign=_alignments(rows[0], left), disable_numparse=True
    )


def _alignments(columns: Sequence[str], left: Collection[int]) -> list[str]:
    return ["left" if place in left else "right" for place in range(len(columns))]
