"""Draws the detector of notebooks 02, 03 and 04: `python notebooks/images/detector.py`.

One figure, three files beside this one: where the embeddings of 02 are taken, and with one part lit
the map x box of 03, and the branch, the teacher and the losses of 04.
"""

from __future__ import annotations

from pathlib import Path

INK, GREY, BLUE, LIT = "#222222", "#6b6b6b", "#005a94", "#fff3c4"
LEFT, RIGHT, WIDTH, ASIDE = 34, 306, 236, 228  # of the two columns, in units of the figure
TOP, PITCH, HIGH = 12, 98, 74  # of the rows
STEPS = {
    "Photograph": ("256 × 256 pixels",),
    "Body": ("a classification network's", "layers, trained on"),
    "FPN": ("three maps of 96 channels,", "strides 8, 16 and 32"),
    "RPN": ("where might something be?", "100 boxes"),
    "RoIAlign": ("each box, cut out of the map", "that fits it: 7 × 7 cells"),
    "Box head": ("two linear layers:", "256 numbers for each box"),
    "Result": ("category, score, better box",),
}
ROWS = {name: row for row, name in enumerate(STEPS)}
# name of a part beside the detector -> what it says, and the steps that arrows lead from
ASIDES = {
    "detector": {
        "Body": ("crop, detector’s body", "mean of the last map"),
        "FPN": ("detector’s FPN", "mean in the box, one level"),
        "RoIAlign": ("detector’s RoI features", "mean of the 7 × 7 cells"),
        "Box head": ("detector’s box head", "its 256 numbers"),
    },
    "detector_attention": {
        "Body": ("Classification network", "its map of the photograph"),
        "RoIAlign": ("Map × box", "mean of the cells in a box:", "one vector for each box"),
    },
    "detector_student": {
        "Body": ("Teacher", "classification network on", "the box’s crop, R-MAC"),
        "FPN": ("Losses", "one vector as the other:", "cosine, and relations"),
        "RPN": ("Branch", "the body’s last layers on", "the box: one vector"),
        "Result": ("Detection losses", "go on beside them"),
    },
}
ARROWS = {  # ends of polylines; what is drawn between the columns
    "detector": [
        [(270, TOP + PITCH * r + 37), (RIGHT, TOP + PITCH * r + 37)] for r in (1, 2, 4, 5)
    ],
    "detector_attention": [
        [(270, 49), (420, 49), (420, 110)],
        [(420, 184), (420, 404)],
        [(270, 637), (420, 637), (420, 478)],
    ],
    "detector_student": [
        [(270, 49), (420, 49), (420, 110)],
        [(420, 184), (420, 208)],
        [(420, 306), (420, 282)],
        [(270, 160), (288, 160), (288, 343), (RIGHT, 343)],
        [(270, 637), (RIGHT, 637)],
    ],
}
WORDS = {"detector_attention": [("its boxes", 300, 628)]}


def box(
    x: int, row: int, width: int, name: str, notes: tuple[str, ...], ink: str, lit: bool
) -> str:
    """A part: its name, and at most two lines that say what it is."""
    y, middle = TOP + PITCH * row, x + width / 2
    size = 18 if x == LEFT else 16
    start = y + (34 if not notes else 31 if len(notes) == 1 else 24)
    lines = [f'<text x="{middle}" y="{start}" font-size="{size}" font-weight="bold">{name}</text>']
    lines += [f'<text x="{middle}" y="{start + 20 * k}" font-size="15">{note}</text>'
              for k, note in enumerate(notes, 1)]  # fmt: skip
    frame = f'fill="{LIT if lit else "white"}" stroke="{ink}" stroke-width="{3 if lit else 1.5}"'
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{HIGH}" rx="8" {frame}/>'
    return "\n".join([shape, f'<g fill="{ink}" text-anchor="middle">', *lines, "</g>"])


def arrow(points: list[tuple[int, int]], ink: str, width: float = 2) -> str:
    """A line with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    head = f'marker-end="url(#{"blue" if ink == BLUE else "grey"})"'
    return f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="{width}" {head}/>'


def marker(name: str, ink: str) -> str:
    """The head of an arrow."""
    return (f'<marker id="{name}" markerWidth="9" markerHeight="9" refX="8" refY="4.5" '
            f'orient="auto" markerUnits="userSpaceOnUse"><path d="M0 0L9 4.5L0 9z" fill="{ink}"/>'
            "</marker>")  # fmt: skip


def figure(name: str) -> str:
    """One of the three files, as text."""
    plain = name == "detector"  # else the detector steps back behind what is lit
    high = TOP + PITCH * (len(STEPS) - 1) + HIGH + 12
    ink = INK if plain else GREY
    parts = [box(LEFT, ROWS[step], WIDTH, step, notes, ink, False) for step, notes in STEPS.items()]
    x = LEFT + WIDTH // 2
    down = [TOP + PITCH * row for row in range(1, len(STEPS))]
    parts += [arrow([(x, y - PITCH + HIGH), (x, y)], GREY) for y in down]
    parts += [arrow([(LEFT, 245), (14, 245), (14, 441), (LEFT, 441)], GREY)]  # FPN to RoIAlign
    for step, (title, *notes) in ASIDES[name].items():
        parts.append(box(RIGHT, ROWS[step], ASIDE, title, tuple(notes), BLUE, not plain))
    parts += [arrow(points, BLUE) for points in ARROWS[name]]
    parts += [f'<text x="{x}" y="{y}" font-size="15" fill="{BLUE}">{word}</text>'
              for word, x, y in WORDS.get(name, [])]  # fmt: skip
    size = f'width="548" height="{high}" viewBox="0 0 548 {high}"'
    fonts = 'font-family="system-ui, Helvetica, Arial, sans-serif"'
    page = f'<rect width="548" height="{high}" rx="10" fill="white"/>'  # on a dark page as well
    heads = f"<defs>{marker('grey', GREY)}{marker('blue', BLUE)}</defs>"
    inside = "\n".join([heads, page, *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {fonts}>\n{inside}\n</svg>\n'


if __name__ == "__main__":
    for name in ASIDES:
        Path(__file__).with_name(f"{name}.svg").write_text(figure(name), encoding="utf-8")
