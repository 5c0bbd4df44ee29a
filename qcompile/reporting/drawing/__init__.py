"""Draws a graph around its quantized linears, as DOT text and as an SVG that needs no other program."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import fx

from qcompile.reporting.drawing.dot import dot
from qcompile.reporting.drawing.picture import Box, Picture, picture
from qcompile.reporting.drawing.svg import svg
from qcompile.reporting.rows import SiteReport

__all__ = ["Box", "Picture", "dot", "draw", "picture", "svg"]


def draw(
    gm: fx.GraphModule, sites: Mapping[str, SiteReport], stem: Path, constants: Collection[str] = (), title: str = ""
) -> tuple[Path, Path]:
    """Write `stem`.dot and `stem`.svg and return their paths.

    sites: name of the node that computes a quantized linear -> its row of the report. constants: names of placeholders that hold
    weights. title: by default how many of these sites were rewritten. Sites are coloured by kernel, the ones without a kernel red;
    operations between them are joined into one box.
    """
    seen = picture(gm.graph, sites, constants, title)
    paths = stem.with_name(stem.name + ".dot"), stem.with_name(stem.name + ".svg")
    paths[0].write_text(dot(seen), encoding="utf-8")
    paths[1].write_text(svg(seen), encoding="utf-8")
    return paths
