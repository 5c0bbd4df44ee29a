"""A picture as DOT text for graphviz."""

from qcompile.reporting.drawing.palette import palette
from qcompile.reporting.drawing.picture import Picture


def dot(seen: Picture) -> str:
    """The picture as a DOT digraph; the legend is its label."""
    colours = palette(seen)
    legend = ", ".join(f"{name}: {count}" for name, count in seen.legend.items())
    lines = [
        "digraph qcompile {",
        f"  label={_quoted(seen.title + (chr(10) + legend if legend else ''))}; labelloc=t; fontname=Helvetica;",
        "  node [shape=box, style=filled, fontname=Helvetica, fontsize=10];",
        "  edge [color=gray50, arrowsize=0.6];",
    ]
    for name, box in seen.boxes.items():
        fill, border = colours[box.kind]
        label = "\n".join(line for line in box.lines if line)
        tip = f", tooltip={_quoted(box.tip)}" if box.tip else ""
        lines.append(f"  {_quoted(name)} [label={_quoted(label)}, fillcolor={_quoted(fill)}, color={_quoted(border)}{tip}];")
    lines += [f"  {_quoted(source)} -> {_quoted(target)};" for source, target in seen.edges]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
