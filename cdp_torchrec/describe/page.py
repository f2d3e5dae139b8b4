"""A page of HTML that needs nothing but itself: text, tables, and figures inside it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from cdp_torchrec.data.plausibility import Finding

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 24px auto;
  padding: 0 20px; }
h1 { margin-bottom: 0; } h2 { margin: 34px 0 6px; border-bottom: 1px solid #ddd; }
p.source { color: #666; margin-top: 2px; overflow-wrap: anywhere; }
ul.findings { list-style: none; padding: 0; }
ul.findings li { margin: 5px 0; padding: 5px 10px; border-left: 5px solid #bbb;
  background: #f7f7f7; }
ul.findings li.error { border-color: #cc3311; background: #fdeeea; }
ul.findings li.warning { border-color: #ee7733; background: #fff5ec; }
ul.findings b { text-transform: uppercase; font-size: 11px; margin-right: 6px; }
figure { margin: 6px 0; } figure img { width: 100%; }
p.reading { color: #444; margin: 4px 0 8px; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; margin: 8px 0; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child { text-align: left; } th { background: #f2f2f2; }
td.mark { background: #fff0b3; font-weight: bold; }
@media print { h2, figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    reading: str
    """How to read it, in a sentence or two."""
    figure: Callable[[], str] | None = None
    """Draws it, as SVG."""
    rows: Sequence[Sequence[str]] = ()
    """A table, the titles of its columns first; a cell that begins with MARK stands out."""


MARK = "*"


def render(
    title: str, subtitle: str, findings: Sequence[Finding], sections: Sequence[Section]
) -> str:
    """The page."""
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="source">{escape(subtitle)}</p>',
        '<ul class="findings">',
        *(
            f'<li class="{finding.level}"><b>{finding.level}</b>{escape(finding.text)}</li>'
            for finding in findings
        ),
        "</ul>",
    ]
    for section in sections:
        lines.append(f"<h2>{escape(section.title)}</h2>")
        lines.append(f'<p class="reading">{escape(section.reading)}</p>')
        if section.figure is not None:
            # As an image, a figure keeps its names and styles to itself.
            data = base64.b64encode(section.figure().encode()).decode()
            alt = escape(f"{section.title}: {section.reading}", quote=True)
            lines.append(
                f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>'
            )
        if section.rows:
            lines.append(_table(section.rows))
    return "\n".join([*lines, "</body></html>", ""])


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = ["".join(map(_cell, row)) for row in rows[1:]]
    lines = [f"<tr>{cells}</tr>" for cells in (head, *body)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cell(text: str) -> str:
    if text.startswith(MARK):
        return f'<td class="mark">{escape(text.removeprefix(MARK))}</td>'
    return f"<td>{escape(text)}</td>"
