"""Colours of a drawing: one for each kernel in order of first use, red for none, grey for everything else."""

from qcompile.reporting.drawing.picture import UNSERVED, Picture

# (fill, border) pairs, told apart also by readers who see no red or green (after the Okabe-Ito palette).
KERNELS = (
    ("#cfe3f5", "#0072b2"),
    ("#c9ede0", "#009e73"),
    ("#fbe6bf", "#c98a00"),
    ("#f2d7e6", "#b0568a"),
    ("#d7eefa", "#3a9bd0"),
    ("#f7f3b5", "#a39a00"),
)
NONE = ("#fbd3cf", "#c62828")
PLAIN = {"input": ("#ffffff", "#555555"), "output": ("#ffffff", "#555555"), "operations": ("#f4f4f4", "#bbbbbb")}


def palette(seen: Picture) -> dict[str, tuple[str, str]]:
    """Box kind -> (fill, border)."""
    names = [name for name in seen.legend if name != UNSERVED]
    return {**PLAIN, **{name: KERNELS[place % len(KERNELS)] for place, name in enumerate(names)}, UNSERVED: NONE}
