"""Regional compilation: layers that repeat are compiled once and called in turn, with nothing changed in what is computed."""

from qcompile.regions.build import Built, Compile, Region, SplitError, build
from qcompile.regions.segments import Part, Plan, plan

__all__ = ["Built", "Compile", "Part", "Plan", "Region", "SplitError", "build", "plan"]
