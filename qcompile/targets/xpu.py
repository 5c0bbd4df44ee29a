"""Target `xpu`: no kernels yet."""

from qcompile.kernels import Kernel

KERNELS: tuple[Kernel, ...] = ()
