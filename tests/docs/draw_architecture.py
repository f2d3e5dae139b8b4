"""Draw cdp_torchrec/architecture.svg: the paper's Figure 1 with the names of our files.

    python tests/docs/draw_architecture.py

Plain SVG text, so that the picture is the same on every machine and follows the reader's light or
dark mode.
"""

from xml.sax.saxutils import escape

from tests.paths import ROOT

PICTURE = ROOT / "cdp_torchrec" / "architecture.svg"
WIDTH, HEIGHT = 1040, 706

STYLE = """
  text { font-family: -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif;
         font-size: 13px; fill: #1f2328; text-anchor: middle; }
  .file { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
          font-size: 10.5px; fill: #57606a; }
  .title { font-size: 14.5px; font-weight: 600; text-anchor: start; }
  .note { font-size: 11.5px; fill: #57606a; }
  .left { text-anchor: start; }
  .page { fill: #ffffff; stroke: #d0d7de; }
  .panel { fill: #f6f8fa; stroke: #d0d7de; }
  .box { fill: #ffffff; stroke: #8c959f; }
  .data { fill: #fff8e6; stroke: #bf8700; }
  .model { fill: #e8f2ff; stroke: #0969da; }
  .cdp { fill: #e9f9ee; stroke: #1a7f37; }
  .noise { fill: #fbefff; stroke: #8250df; }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#head); }
  .head { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .file, .note { fill: #9198a1; }
    .page { fill: #0d1117; stroke: #3d444d; }
    .panel { fill: #151b23; stroke: #3d444d; }
    .box { fill: #212830; stroke: #656c76; }
    .data { fill: #2e2410; stroke: #d29922; }
    .model { fill: #10233d; stroke: #4493f8; }
    .cdp { fill: #12261a; stroke: #3fb950; }
    .noise { fill: #271a36; stroke: #ab7df8; }
    .arrow { stroke: #9198a1; }
    .head { fill: #9198a1; }
  }
"""


def panel(x: int, y: int, width: int, height: int, title: str) -> str:
    """A part of the picture with its title."""
    return (
        f'<rect class="panel" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>\n'
        f'<text class="title" x="{x + 16}" y="{y + 25}">{escape(title)}</text>'
    )


def box(kind: str, x: int, y: int, width: int, height: int, *lines: str) -> str:
    """A box with one line for each name: files are set apart, and so are lines in brackets."""
    parts = [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7" '
        'stroke-width="1.4"/>'
    ]
    first = y + height / 2 - (len(lines) - 1) * 8 + 4.5
    for number, line in enumerate(lines):
        css = ""
        if line.startswith("("):
            css, line = ' class="note"', line.strip("()")
        elif line.endswith((".py", "/")):
            css = ' class="file"'
        place = f'x="{x + width / 2:g}" y="{first + 16 * number:g}"'
        parts.append(f"<text{css} {place}>{escape(line)}</text>")
    return "\n".join(parts)


def note(x: int, y: int, text: str, css: str = "note") -> str:
    """A remark beside the boxes."""
    return f'<text class="{css}" x="{x}" y="{y}">{escape(text)}</text>'


def arrow(*points: tuple[int, int]) -> str:
    """A line through some points, with a head at its end."""
    return f'<path class="arrow" d="M {" L ".join(f"{x} {y}" for x, y in points)}"/>'


def flow() -> list[str]:
    """From log to server, the upper strip."""
    stations = [
        ("box", "raw log", "(yours)"),
        ("data", "prepare", "data/prepare/"),
        ("data", "dataset", "data/schema.py"),
        ("data", "batches", "data/assemble.py"),
        ("model", "ranking model", "model/ranking.py"),
        ("model", "train, evaluate", "trainer.py", "metrics/"),
        ("box", "run directory", "run/"),
        ("box", "export, serve", "serving/"),
    ]
    parts = [panel(16, 16, 1008, 122, "From log to server")]
    width, gap = 107, 17
    for number, (kind, *lines) in enumerate(stations):
        x = 32 + number * (width + gap)
        parts.append(box(kind, x, 54, width, 66, *lines))
        if number:
            parts.append(arrow((x - gap, 87), (x - 2, 87)))
    return parts


def tower() -> list[str]:
    """The ranking model, Figure 1a."""
    return [
        panel(16, 154, 420, 536, "Ranking model (eq. 1, Figure 1a)"),
        box("box", 118, 194, 216, 40, "click probability"),
        arrow((226, 286), (226, 237)),
        box("model", 118, 288, 216, 52, "high-level MLP", "model/ranking.py"),
        arrow((90, 404), (90, 372), (196, 372), (196, 343)),
        arrow((226, 404), (226, 343)),
        arrow((364, 404), (364, 372), (256, 372), (256, 343)),
        box("model", 32, 406, 116, 62, "cross layers", "model/ranking.py"),
        box("model", 168, 406, 116, 62, "deep layers", "model/ranking.py"),
        box("cdp", 304, 406, 116, 62, "interest", "interest/cdp.py"),
        arrow((90, 548), (90, 471)),
        arrow((226, 548), (226, 471)),
        arrow((364, 548), (364, 471)),
        box(
            "data",
            *(32, 550, 388, 76),
            "embeddings, sharded by TorchRec",
            "(query, user, item, context, scene; history)",
            "model/sparse_arch.py",
        ),
        note(226, 651, "Plans (distributed/plans/) never change the mathematics."),
        note(226, 671, "Every other module of interest/ takes CDP's place."),
    ]


def purifier() -> list[str]:
    """CDP, Figures 1b and 1c."""
    return [
        panel(452, 154, 572, 536, "Contextual Diffusion Purifier (Figures 1b and 1c)"),
        box(
            "data", 468, 612, 244, 56, "behaviours in the item's category", "data/history/store.py"
        ),
        note(724, 644, "eq. 2", "note left"),
        arrow((590, 612), (590, 567)),
        box("cdp", 492, 508, 196, 56, "pooled interest z_0", "interest/pooling.py"),
        note(700, 540, "eq. 3", "note left"),
        arrow((590, 508), (590, 463)),
        box("noise", 492, 404, 196, 56, "start state", "diffusion/schedule.py"),
        note(700, 436, "eq. 4", "note left"),
        arrow((590, 404), (590, 359)),
        box(
            "noise",
            *(492, 284, 196, 72),
            "denoiser",
            "diffusion/denoiser.py",
            "diffusion/sampler.py",
        ),
        note(700, 348, "eqs. 9-10", "note left"),
        arrow((688, 300), (720, 300), (720, 258), (640, 258), (640, 281)),
        note(728, 272, "K times", "note left"),
        arrow((566, 284), (566, 237)),
        box("cdp", 492, 194, 196, 40, "purified interest z*"),
        box("cdp", 764, 288, 244, 56, "condition c", "interest/condition.py"),
        arrow((764, 322), (691, 322)),
        note(892, 276, "eqs. 7-8: a gate mixes the experts"),
        arrow((802, 430), (802, 347)),
        arrow((886, 430), (886, 347)),
        arrow((970, 430), (970, 347)),
        box("box", 764, 432, 76, 74, "query", "user", "item"),
        box("box", 848, 432, 76, 74, "context"),
        box("box", 932, 432, 76, 74, "scene"),
        note(886, 526, "eq. 5: collaborative; eq. 6: context, scene"),
        note(886, 620, "Training adds the noise loss (eqs. 11-13):"),
        note(886, 640, "model/train_task.py", "file"),
    ]


def draw() -> str:
    """The picture as SVG."""
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse">'
        '<path class="head" d="M 0 0 L 10 5 L 0 10 z"/></marker>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" '
        'aria-label="Architecture of cdp_torchrec with its files">',
        f"<style>{STYLE}</style>",
        f"<defs>{head}</defs>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
        *flow(),
        *tower(),
        *purifier(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw())
