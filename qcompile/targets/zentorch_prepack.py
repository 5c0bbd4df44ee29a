"""int8 weights in the order that zentorch's dynamic_qlinear computes with, so that it keeps no second copy of them.

Given plain int8 codes, dynamic_qlinear reorders them at the first call and keeps the result, found by address, until the
process ends: twice the memory while the model lives, and once after it is gone. `zentorch_weight_prepack_for_dynamic_qlinear`
returns the reordered weight instead. Two traps, both measured with 2.13.0.2:

- The result's shape is [N, K], but its storage is longer: sums of the rows stand behind. Whoever clones the tensor loses them
  and reads foreign memory. The operator here returns the whole storage, as a flat tensor that may be copied.
- Above K = 2048 the order is not the one the product reads: silently wrong (-14 dB). There the plain codes are used.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage] - no public way

from qcompile.meaning import ActivationQuant, sqnr_db
from qcompile.ops import LIBRARY
from qcompile.targets.binding import Foreign

LARGEST_K = 2048
SMALLEST_N = 16


def _same_shape(weight: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(weight)


PREPACK = Foreign("zentorch", "zentorch_weight_prepack_for_dynamic_qlinear", ("weight",), "(Tensor weight) -> Tensor", _same_shape)


def stored_bytes(n: int, k: int) -> int:
    """Bytes of a prepacked [N, K]: N rounded up to 16 rows, each with K bytes and a 4-byte sum (K % 4 == 0, N >= 16)."""
    return (n + 15) // 16 * 16 * (k + 4)


def _prepack(codes: Tensor) -> Tensor:
    """codes int8 [N, K] -> int8 [stored_bytes(N, K)]."""
    packed = PREPACK(weight=codes)
    size, expected = packed.untyped_storage().nbytes(), stored_bytes(*codes.shape)
    if size != expected:
        raise RuntimeError(f"zentorch prepacked {list(codes.shape)} into {size} bytes, qcompile knows a layout of {expected}")
    return packed.as_strided((size,), (1,)).clone()


def _prepack_fake(codes: Tensor) -> Tensor:
    n, k = codes.shape
    return codes.new_empty((stored_bytes(n, k),))


_library: Any = LIBRARY
_library.define("zentorch_prepack(Tensor codes) -> Tensor")
_library.impl("zentorch_prepack", _prepack, "CPU")
_torch_library: Any = torch.library
_torch_library.register_fake("qcompile::zentorch_prepack", _prepack_fake, lib=LIBRARY)


def prepack(codes: Tensor) -> Tensor:
    """The canonical int8 codes [N, K] as one flat int8 tensor in zentorch's own order."""
    packed: Tensor = torch.ops.qcompile.zentorch_prepack.default(codes)
    return packed


def serves(n: int, k: int) -> bool:
    """Whether an [N, K] weight is prepacked (shapes for which that was found right, in a library that still gets it right)."""
    return n >= SMALLEST_N and k % 4 == 0 and k <= LARGEST_K and works()


@cache
def works() -> bool:
    """Prepack a small weight and multiply with it: False if this zentorch lacks the operator, or does it otherwise."""
    if PREPACK.reasons():
        return False
    from qcompile.targets.zentorch import QLINEAR, QLINEAR_ROUNDING  # noqa: PLC0415 - that module imports this one

    if QLINEAR.reasons():
        return False
    with _disable_current_modes():
        return all(_right(n, LARGEST_K, m, QLINEAR, QLINEAR_ROUNDING) for n in (33, 1088) for m in (1, 5))


def _right(n: int, k: int, m: int, operator: Foreign, rounding: ActivationQuant) -> bool:
    generator = torch.Generator().manual_seed(n + m)
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    x = torch.randn(m, k, generator=generator)
    try:
        weight = _prepack(codes).as_strided((n, k), (k, 1))
        y = operator(input=x, weight=weight, weight_scales=torch.ones(n), bias=None, is_weight_prepacked=True)
    except RuntimeError:
        return False
    return sqnr_db(rounding.apply(x) @ codes.float().t(), y) > 80
