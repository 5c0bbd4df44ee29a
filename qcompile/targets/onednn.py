"""int8 products by oneDNN as it ships with torch: uint8 activations with zero point 128, prepacked int8 weights, float32 results.

oneDNN's prepacked weight is an opaque tensor without storage, which nothing but oneDNN's own operators can handle. The operator
`qcompile::onednn_pack` returns an ordinary int8 tensor over the same memory instead; `qcompile::onednn_linear` finds the opaque
tensor again by its address, for as long as the ordinary one's storage lives. A copy of it is not a packed weight: that is an error.
"""

import ctypes
import weakref
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.errors import WeightError
from qcompile.operators import LIBRARY
from qcompile.targets.binding import schema_objections
from qcompile.torch_internals.tensors import without_modes
from qcompile.weights.memory import Region

QLINEAR_ARGUMENTS = (
    *("qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point", "bias"),
    *("output_scale", "output_zero_point", "output_dtype", "post_op_name", "post_op_args", "post_op_algorithm"),
)
_OPAQUE: dict[int, tuple[Tensor, Tensor]] = {}  # address -> (oneDNN's tensor, zero points of the weight)


@cache
def objections() -> tuple[str, ...]:
    """What this torch lacks for it: an operator, an argument, or right results (processors without VNNI saturate to 16 bits)."""
    namespaces: Any = torch.ops
    for namespace, name in (
        ("onednn", "qlinear_prepack"),
        ("onednn", "qlinear_pointwise"),
        ("mkldnn", "data_ptr"),
        ("mkldnn", "_nbytes"),
    ):
        if not hasattr(getattr(namespaces, namespace), name):
            return (f"this torch has no operator {namespace}::{name} (built without oneDNN?)",)
    if wrong := schema_objections(namespaces.onednn.qlinear_pointwise.default._schema, QLINEAR_ARGUMENTS):
        return wrong
    with without_modes():
        return () if _exact() else ("oneDNN's uint8 x int8 product saturates on this processor (no VNNI): wrong results",)


def _exact() -> bool:
    """Whether the largest operands give their exact product, for one row and for several."""
    codes = torch.full((32, 256), 127, dtype=torch.int8, device="cpu")
    codes[1::2] = -128
    packed = pack(codes)
    for rows in (1, 7):
        q = torch.full((rows, 256), 255, dtype=torch.uint8, device="cpu")
        if not torch.equal(
            linear(q, packed, torch.ones(32, dtype=torch.float32, device="cpu")), (q.float() - 128) @ codes.float().t()
        ):
            return False
    return True


def _pack(codes: Tensor) -> Tensor:
    """codes int8 [N, K] -> int8 [N, K] in oneDNN's order; the storage may be longer, and must not be copied."""
    operators: Any = torch.ops
    opaque: Tensor = operators.onednn.qlinear_prepack(codes.contiguous(), None)
    address, size = int(operators.mkldnn.data_ptr(opaque)), int(operators.mkldnn._nbytes(opaque))
    region = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(Region)
    _OPAQUE[address] = (opaque, torch.zeros(codes.shape[0], dtype=torch.int64, device="cpu"))
    weakref.finalize(region, _OPAQUE.pop, address)
    return torch.frombuffer(region, dtype=torch.int8)[: codes.numel()].view(codes.shape)


def _linear(q: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """q uint8 [M, K], packed [N, K], scales float32 [N] -> float32 [M, N]: ((q - 128) @ codes.T) * scales."""
    if packed.data_ptr() not in _OPAQUE:
        raise WeightError("packed", "a weight as qcompile::onednn_pack made it, in this process", "a copy of one")
    opaque, zeros = _OPAQUE[packed.data_ptr()]
    operators: Any = torch.ops
    result: Tensor = operators.onednn.qlinear_pointwise.default(
        q, 1.0, 128, opaque, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result


def _pack_fake(codes: Tensor) -> Tensor:
    return torch.empty_like(codes)


def _linear_fake(q: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    return q.new_empty((q.shape[0], packed.shape[0]), dtype=torch.float32)


_library: Any = LIBRARY
_torch_library: Any = torch.library
_library.define("onednn_pack(Tensor codes) -> Tensor")
_library.define("onednn_linear(Tensor q, Tensor packed, Tensor scales) -> Tensor")
_library.impl("onednn_pack", _pack, "CPU")
_library.impl("onednn_linear", _linear, "CPU")
_torch_library.register_fake("qcompile::onednn_pack", _pack_fake, lib=LIBRARY)
_torch_library.register_fake("qcompile::onednn_linear", _linear_fake, lib=LIBRARY)

pack: Any = torch.ops.qcompile.onednn_pack.default
linear: Any = torch.ops.qcompile.onednn_linear.default
