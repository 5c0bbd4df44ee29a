"""Regional compilation: layers that repeat are compiled once and called in turn, with nothing changed in what is computed."""

from qcompile.run.regions.compile_parts import Built, Compile, Region, SplitError, build
from qcompile.run.regions.cut import Part, Plan, plan

__all__ = ["Built", "Compile", "Part", "Plan", "Region", "SplitError", "build", "plan"]
