"""Regional compilation: layers that repeat are compiled once and called in turn, with nothing changed in what is computed."""

from qcompile.regions.segments import Plan, plan
from qcompile.regions.stitch import compile_parts

__all__ = ["Plan", "compile_parts", "plan"]
