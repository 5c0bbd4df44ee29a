"""Target `rdna3`: no kernels yet."""

from qcompile.kernels import Kernel

KERNELS: tuple[Kernel, ...] = ()
