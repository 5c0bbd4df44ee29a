"""Kernel rows in tests: what runs here, and a skip that names the hardware where one does not."""

import pytest

from qcompile.kernels import Kernel, find
from qcompile.platform import platform
from qcompile.platform.libraries import zentorch_hardware


def needed(name: str) -> Kernel:
    """The row, if it runs on this machine; skips for want of a processor, fails for want of a library."""
    row = find(name)
    if row.target == "zentorch" and zentorch_hardware(platform()):
        pytest.skip(f"{name} needs an AMD processor with AVX-512")
    reasons = row.missing(platform())
    if name == "torch.qlinear_int8" and any("VNNI" in reason for reason in reasons):
        pytest.skip(f"{name} needs a processor with VNNI")
    assert not reasons, reasons
    return row
