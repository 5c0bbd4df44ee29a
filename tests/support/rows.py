"""Kernel rows in tests: what runs here, and a skip that names the hardware where one does not."""

import pytest

from qcompile.hardware import platform
from qcompile.hardware.libraries import zentorch_release
from qcompile.kernel import Kernel
from qcompile.targets.registry import find


def needed(name: str) -> Kernel:
    """The row, if it runs on this machine; skips where no processor or build for it can be there, fails for want of a library."""
    row = find(name)
    if row.target == "zentorch" and not zentorch_release(platform()):
        pytest.skip(f"{name} needs an AMD processor with AVX-512, and a torch that zentorch is built for")
    reasons = row.missing(platform())
    if name == "torch.qlinear_int8" and any("VNNI" in reason for reason in reasons):
        pytest.skip(f"{name} needs a processor with VNNI")
    assert not reasons, reasons
    return row
