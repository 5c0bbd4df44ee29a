"""compressed-tensors' schemes of small floats: weights of 8 bits (float-quantized and MXFP8), and how activations are rounded."""

from typing import Any

import torch

from qcompile.float_rounding import FLOAT_KINDS
from qcompile.formats.layouts import MX_BLOCK, NVFP4_BLOCK
from qcompile.frontends.stored_checks import Checks, enum_text
from qcompile.meaning import group_count
from qcompile.operators import Structure

FORMATS = ("float-quantized", "naive-quantized", "mxfp8-quantized")
KNOWN = "float-quantized and mxfp8-quantized weights in E4M3 (tensor, channel, group or block)"


def is_float8(form: str, weights: Any) -> bool:
    """Whether a layer's weights are such numbers, by its scheme."""
    return form in FORMATS and enum_text(weights.type) == "float" and weights.num_bits == 8 and bool(weights.symmetric)


def structure_of(checks: Checks, form: str, weights: Any, activation: str) -> Structure | None:
    """The structure of a layer for which `is_float8` holds; None if its strategy is not known. Raises WeightError."""
    n, k = checks.n, checks.k
    rows, group = _block(weights, n, k)
    if not rows:
        return None
    checks.tensor("weight", torch.float8_e4m3fn, (n, k))
    checks.numbers("weight")
    if form == "mxfp8-quantized":
        if (rows, group) != (1, MX_BLOCK):
            return None
        checks.divides(group)
        checks.tensor("weight_scale", torch.uint8, (n, k // group))
        checks.exponents("weight_scale")
        return Structure("mxfp8", 8, group, n, k, activation)
    if rows == 1:
        checks.divides(group)
    is_one = rows >= n and group >= k and enum_text(weights.strategy) == "tensor"
    grid = (1,) if is_one else (group_count(n, rows), group_count(k, group))
    checks.tensor("weight_scale", None, grid)
    checks.finite("weight_scale")
    return Structure("ct_e4m3", 8, group, n, k, activation, rows)


def _block(weights: Any, n: int, k: int) -> tuple[int, int]:
    """(outputs, values along K) that share a scale; (0, 0) if that cannot be said."""
    strategy, block = enum_text(weights.strategy), getattr(weights, "block_structure", None)
    if strategy == "tensor":
        return n, k
    if strategy == "channel":
        return 1, k
    if strategy == "group":
        return 1, int(weights.group_size)
    if strategy == "block" and isinstance(block, list | tuple) and len(block) == 2 and all(int(size) > 0 for size in block):
        return int(block[0]), min(int(block[1]), k)
    return 0, 0


def float_activation(args: Any, weight_bits: int) -> str | None:
    """The kind of qcompile.float_rounding that a scheme's inputs ask for, or None if there is none.

    NVFP4: 4 bits in groups of 16 with E4M3 scales, dynamic but for the global one. MXFP4, MXFP8: 4 or 8 bits in groups of 32 with
    E8M0 scales. FP8: 8 bits, dynamic per token or group of 128, or static.
    """
    strategy, bits, size = enum_text(args.strategy), int(args.num_bits), args.group_size
    scale = str(getattr(args, "scale_dtype", None)).removeprefix("torch.")
    if bits == 4 and strategy == "tensor_group" and size == NVFP4_BLOCK and enum_text(args.dynamic) == "local" and weight_bits == 4:
        return "nvfp4"
    if args.dynamic is True and strategy == "group" and size == MX_BLOCK and scale == "uint8" and bits in (4, 8):
        return "mxfp4" if bits == 4 else "mxfp8"
    if bits != 8 or scale != "None":
        return None
    if args.dynamic is True and strategy == "token":
        return "fp8_token"
    if args.dynamic is True and strategy == "group" and size == FLOAT_KINDS["fp8_group"].group:
        return "fp8_group"
    return "fp8_tensor" if args.dynamic is False and strategy == "tensor" else None
