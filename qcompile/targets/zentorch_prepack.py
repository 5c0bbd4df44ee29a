"""Weights in zentorch's own order, in memory that is ours: the library's packing operators never free what they return.

Given plain int8 codes, dynamic_qlinear reorders them at the first call and keeps the result, found by address, until the
process ends: twice the memory while the model lives, and once after it is gone. `zentorch_weight_prepack_for_dynamic_qlinear`
returns the reordered weight instead. Traps, all measured with 2.13.0.2:

- The result's shape is [N, K], but its storage is longer: sums of the rows stand behind. Whoever clones the tensor loses them
  and reads foreign memory. The operator here returns the whole storage, as a flat tensor that may be copied.
- Above K = 2048 the order is not the one the product reads: silently wrong (-14 dB). There the plain codes are used.
- Neither this nor `zentorch_woq_repack_weight` frees its result, ever. The operators here copy it and give the pages back.

woq_linear has no prepacked form: it keeps a reordered copy beside the packed weight, also after the weight is gone.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.hardware.quiet import without_their_messages
from qcompile.meaning import sqnr_db
from qcompile.operators import LIBRARY
from qcompile.targets.binding import Foreign
from qcompile.targets.nibbles import nibbles
from qcompile.targets.zentorch_ops import PREPACK, QLINEAR, QLINEAR_ROUNDING, REPACK
from qcompile.torch_internals.tensors import without_modes
from qcompile.weights.memory import discard_pages

LARGEST_K = 2048
SMALLEST_N = 16


def stored_bytes(n: int, k: int) -> int:
    """Bytes of a prepacked [N, K]: N rounded up to 16 rows, each with K bytes and a 4-byte sum (K % 4 == 0, N >= 16)."""
    return (n + 15) // 16 * 16 * (k + 4)


def _prepack(codes: Tensor) -> Tensor:
    """codes int8 [N, K] -> int8 [stored_bytes(N, K)]."""
    packed = PREPACK(weight=codes)
    size, expected = packed.untyped_storage().nbytes(), stored_bytes(*codes.shape)
    if size != expected:
        raise RuntimeError(f"zentorch prepacked {list(codes.shape)} into {size} bytes, qcompile knows a layout of {expected}")
    ours = packed.as_strided((size,), (1,)).clone()
    discard_pages(packed)
    return ours


def _prepack_fake(codes: Tensor) -> Tensor:
    n, k = codes.shape
    return codes.new_empty((stored_bytes(n, k),))


def _repack(codes: Tensor) -> Tensor:
    """codes int8 [N, K], K % 8 == 0 -> int32 [N, K/8]; the same layout in plain torch where the library is absent."""
    if REPACK.live() is None:
        return nibbles(codes)
    packed = REPACK(unpacked_weight=codes)
    ours = packed.clone()
    discard_pages(packed)
    return ours


def _repack_fake(codes: Tensor) -> Tensor:
    n, k = codes.shape
    return codes.new_empty((n, k // 8), dtype=torch.int32)


_library: Any = LIBRARY
_library.define("zentorch_woq_repack_weight(Tensor codes) -> Tensor")
_library.impl("zentorch_woq_repack_weight", _repack, "CPU")
_library.define("zentorch_prepack(Tensor codes) -> Tensor")
_library.impl("zentorch_prepack", _prepack, "CPU")
_torch_library: Any = torch.library
_torch_library.register_fake("qcompile::zentorch_woq_repack_weight", _repack_fake, lib=LIBRARY)
_torch_library.register_fake("qcompile::zentorch_prepack", _prepack_fake, lib=LIBRARY)


def repack(codes: Tensor) -> Tensor:
    """The canonical codes int8 [N, K] as nibbles int32 [N, K/8]."""
    packed: Tensor = torch.ops.qcompile.zentorch_woq_repack_weight.default(codes)
    return packed


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
    if PREPACK.reasons() or QLINEAR.reasons():
        return False
    with without_modes(), without_their_messages():
        return all(_right(n, LARGEST_K, m, QLINEAR, QLINEAR_ROUNDING) for n in (33, 1088) for m in (1, 5))


def _right(n: int, k: int, m: int, operator: Foreign, rounding: ActivationQuant) -> bool:
    generator = torch.Generator().manual_seed(n + m)
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator, device="cpu")
    x = torch.randn(m, k, generator=generator, dtype=torch.float32, device="cpu")
    try:
        _prepack(codes)  # twice, because nothing may depend on the first one's pages
        weight = _prepack(codes).as_strided((n, k), (k, 1))
        y = operator(
            input=x,
            weight=weight,
            weight_scales=torch.ones(n, dtype=torch.float32, device="cpu"),
            bias=None,
            is_weight_prepacked=True,
        )
    except RuntimeError:
        return False
    return sqnr_db(rounding.apply(x) @ codes.float().t(), y) > 80
