"""A picture as an SVG page with a title and a legend; needs no other program."""

from itertools import pairwise
from xml.sax.saxutils import escape

from qcompile.reporting.drawing.layout import place
from qcompile.reporting.drawing.palette import palette
from qcompile.reporting.drawing.picture import Box, Picture

MARGIN = 24.0
LINE = 15.0
LETTER = 6.6  # mean width of a letter of the font below
FONT = "font-family='Helvetica, Arial, sans-serif' font-size='12'"


def svg(seen: Picture) -> str:
    """The whole drawing as one SVG document."""
    sizes = {name: _size(box) for name, box in seen.boxes.items()}
    placed = place(sizes, seen.edges)
    colours = palette(seen)
    top = MARGIN + LINE * 2 + (LINE * 1.6 if seen.legend else 0)
    legend, legend_width = _legend(seen, colours)
    width = max(placed.width, legend_width, len(seen.title) * LETTER * 1.3) + 2 * MARGIN
    left = (width - placed.width) / 2
    body = [_arrow(points, left, top) for points in placed.routes.values()]
    for name, box in seen.boxes.items():
        x, y = placed.centres[name]
        body.append(_box(box, sizes[name], (x + left, y + top), colours[box.kind]))
    height = top + placed.height + MARGIN
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' {FONT}>",
            "<defs><marker id='tip' viewBox='0 0 8 8' refX='8' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
            "<path d='M0,0 L8,4 L0,8 z' fill='#888'/></marker></defs>",
            "<rect width='100%' height='100%' fill='#ffffff'/>",
            f"<text x='{MARGIN}' y='{MARGIN + LINE * 0.6:.0f}' font-size='15' font-weight='bold'>{escape(seen.title)}</text>",
            *legend,
            *body,
            "</svg>",
            "",
        ]
    )


def _size(box: Box) -> tuple[float, float]:
    lines = [line for line in box.lines if line]
    return max((len(line) for line in lines), default=4) * LETTER + 22, len(lines) * LINE + 14


def _legend(seen: Picture, colours: dict[str, tuple[str, str]]) -> tuple[list[str], float]:
    x, y = MARGIN, MARGIN + LINE * 1.4
    parts: list[str] = []
    for name, count in seen.legend.items():
        fill, border = colours[name]
        text = f"{name} ({count})"
        parts.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='14' height='14' rx='3' fill='{fill}' stroke='{border}' stroke-width='1.5'/>"
        )
        parts.append(f"<text x='{x + 20:.1f}' y='{y + 11:.1f}'>{escape(text)}</text>")
        x += 20 + len(text) * LETTER + 22
    return parts, x - MARGIN


def _box(box: Box, size: tuple[float, float], centre: tuple[float, float], colours: tuple[str, str]) -> str:
    (width, height), (x, y), (fill, border) = size, centre, colours
    plain = box.kind in {"input", "output", "operations"}
    lines = [line for line in box.lines if line]
    first = y - (len(lines) - 1) * LINE / 2 + 4
    texts = [
        f"<text x='{x:.1f}' y='{first + place * LINE:.1f}' text-anchor='middle'"
        + (" fill='#666'" if plain else " font-weight='bold'" if place in (0, len(lines) - 1) else "")
        + f">{escape(line)}</text>"
        for place, line in enumerate(lines)
    ]
    tip = f"<title>{escape(box.tip)}</title>" if box.tip else ""
    frame = (
        f"<rect x='{x - width / 2:.1f}' y='{y - height / 2:.1f}' width='{width:.1f}' height='{height:.1f}' "
        f"rx='{12 if plain else 4}' fill='{fill}' stroke='{border}' stroke-width='{1 if plain else 1.8}'/>"
    )
    return f"<g>{tip}{frame}{''.join(texts)}</g>"


def _arrow(points: list[tuple[float, float]], left: float, top: float) -> str:
    """A smooth line: vertical at every point, so that it leaves boxes downwards and passes rows straight."""
    moved = [(x + left, y + top) for x, y in points]
    path = f"M{moved[0][0]:.1f},{moved[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(moved):
        if abs(x0 - x1) < 0.5:
            path += f" L{x1:.1f},{y1:.1f}"
        else:
            middle = (y0 + y1) / 2
            path += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return f"<path d='{path}' fill='none' stroke='#888' stroke-width='1.2' marker-end='url(#tip)'/>"
