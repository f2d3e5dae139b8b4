"""Tables show cells exactly as given, and every column lines up."""

from cdp_torchrec.text_table import aligned_table, markdown_table
from tests.squeeze import squeezed

HEADER = ("row", "GAUC", "at")
ROWS = [["din", "0.80", "b=1"], ["pooled *", "-0.1000 [-1e3, 1,000]", ""]]


def test_markdown_aligns_its_source_and_what_is_shown_of_it() -> None:
    assert markdown_table(HEADER, ROWS, left=(0, 2)).splitlines() == [
        "| row      |                  GAUC | at   |",
        "|:---------|----------------------:|:-----|",
        "| din      |                  0.80 | b=1  |",
        "| pooled * | -0.1000 [-1e3, 1,000] |      |",
    ]


def test_a_markdown_table_may_have_no_row() -> None:
    assert markdown_table(("a", "b"), []).splitlines() == ["| a   | b   |", "|-----|-----|"]


def test_columns_are_two_spaces_apart_and_no_line_ends_with_a_space() -> None:
    assert aligned_table([HEADER, *ROWS], left=(0, 2)).splitlines() == [
        "row                        GAUC  at",
        "din                        0.80  b=1",
        "pooled *  -0.1000 [-1e3, 1,000]",
    ]


def test_numbers_are_not_reformatted() -> None:
    (_, _, line) = markdown_table(("a", "b"), [["007", "1e5"]]).splitlines()
    assert squeezed(line) == "| 007 | 1e5 |"
