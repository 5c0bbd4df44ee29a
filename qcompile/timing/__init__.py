"""How long a kernel takes: predicted from the machine's measured limits, or measured for exactly this layer."""

from qcompile.timing.times import ROWS, Times, times_for

__all__ = ["ROWS", "Times", "times_for"]
