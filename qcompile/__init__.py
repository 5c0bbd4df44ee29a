"""qcompile: runs quantized checkpoints packed, on the fastest kernel the machine has, through torch.compile, and says why."""

from typing import TYPE_CHECKING

from qcompile.errors import QCompileError
from qcompile.versions import blamed, installed

with blamed("torch"):
    from qcompile.activations import ActivationQuant
    from qcompile.api import compile, explain, load, pack_linear, prepare
    from qcompile.hardware import platform
    from qcompile.meaning import QuantizedWeight
    from qcompile.options import Options
    from qcompile.reporting.report import Report, report
    from qcompile.reporting.rows import SiteReport
    from qcompile.targets.registry import table as kernels
    from qcompile.torch_internals.registration import register

register()

__all__ = [
    "ActivationQuant",
    "Options",
    "QCompileError",
    "QuantizedWeight",
    "Report",
    "SiteReport",
    "compile",
    "explain",
    "kernels",
    "load",
    "pack_linear",
    "platform",
    "prepare",
    "report",
]

if TYPE_CHECKING:
    __version__: str
else:  # hidden from type checkers, which would let every name pass

    def __getattr__(name: str) -> str:
        """`__version__`, from what is installed, looked up when somebody asks."""
        if name == "__version__":
            return installed("qcompile") or "0+unknown"  # a source folder that was not installed
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
