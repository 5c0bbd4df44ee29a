"""The canonical operators of the `qcompile` namespace: each has an executable reference on every device and a fake kernel."""

import torch
from torch import Tensor

from qcompile.errors import ReleasedWeightError, UnknownNameError
from qcompile.formats.layouts import LAYOUTS, Packing, Stored
from qcompile.meaning import CODE_BOOKS, ActivationQuant, dequantize, row_pieces

# FRAGMENT, because the compiled library (qcompile/_C.so) adds operators to the same namespace.
LIBRARY = torch.library.Library("qcompile", "FRAGMENT")

_PIECE = 1 << 21  # elements

LIBRARY.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? perm, Tensor? bias, Tensor? act_scale, "
    "Tensor? act_zero, int group, str codebook, str activation) -> Tensor"
)
LIBRARY.define("fake_quantize(Tensor x, Tensor? scale, Tensor? zero, str activation) -> Tensor")


def _quantized_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    perm: Tensor | None,
    bias: Tensor | None,
    act_scale: Tensor | None,
    act_zero: Tensor | None,
    group: int,
    codebook: str,
    activation: str,
) -> Tensor:
    """y = act(x)[..., perm] @ W.T + bias with W of meaning.QuantizedWeight; x [..., K] -> y [..., N] in the dtype of x."""
    rounded = ActivationQuant.parse(activation).apply(x, act_scale, act_zero)
    if perm is not None:
        rounded = rounded.index_select(-1, perm)
    # Some rows at a time: in float32 the weight of a large layer would be hundreds of megabytes.
    weight = torch.empty(codes.shape, dtype=x.dtype, device=codes.device)
    for part in row_pieces(codes.shape[0], codes.shape[1], _PIECE):
        points = None if zeros is None else zeros[part]
        weight[part] = dequantize(codes[part], scales[part], points, group, codebook, x.dtype)
    return torch.nn.functional.linear(rounded, weight, None if bias is None else bias.to(x.dtype))


def _quantized_linear_fake(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _fake_quantize(x: Tensor, scale: Tensor | None, zero: Tensor | None, activation: str) -> Tensor:
    """x rounded by the `ActivationQuant` that `activation` spells; a fresh tensor in the dtype of x."""
    rounded = ActivationQuant.parse(activation).apply(x, scale, zero)
    return rounded.clone() if rounded is x else rounded


def _fake_quantize_fake(x: Tensor, scale: Tensor | None, zero: Tensor | None, activation: str) -> Tensor:
    return torch.empty_like(x)


LIBRARY.impl("quantized_linear", _quantized_linear, "CompositeExplicitAutograd")
LIBRARY.impl("fake_quantize", _fake_quantize, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::quantized_linear", _quantized_linear_fake, lib=LIBRARY)
torch.library.register_fake("qcompile::fake_quantize", _fake_quantize_fake, lib=LIBRARY)

quantized_linear = torch.ops.qcompile.quantized_linear.default
fake_quantize = torch.ops.qcompile.fake_quantize.default
# A parameter's path in the model, kept on the tensor itself so that an error can name it.
NAME_ATTRIBUTE = "qcompile_name"
LIBRARY.define(
    "dequantize_packed(Tensor packed, Tensor scales, Tensor? zeros, Tensor? g_idx, str layout, int bits, int group, int n, int k, "
    "ScalarType dtype) -> Tensor"
)


def _dequantize_packed(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    g_idx: Tensor | None,
    layout: str,
    bits: int,
    group: int,
    n: int,
    k: int,
    dtype: torch.dtype,
) -> Tensor:
    """W [n, k] of a packed weight in `dtype`; layouts, tensors and their shapes: formats.layouts.

    (code - zero) is exact, and its product with the scale is rounded once, to the dtype of the scales (NVFP4: straight to `dtype`).
    That is what compressed-tensors, GPTQ's and AWQ's own dequantizations give bit by bit: an integer of 9 bits times a 16-bit
    float is exact in float32. Then it is cast to `dtype`. g_idx [k]: the group of each column (act-order); `group` is then only
    its size. Raises ReleasedWeightError if the raw tensors were freed, UnknownNameError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    for part in (packed, scales, zeros, g_idx):
        if part is not None and part.numel() and part.untyped_storage().size() == 0:
            raise ReleasedWeightError(getattr(part, NAME_ATTRIBUTE, f"the {layout} weight [{n}, {k}]"))
    row = LAYOUTS[layout]
    # Without g_idx the unpacked columns keep their order, whatever the sizes of the groups are.
    found = row.unpack(Stored(packed, scales, zeros), Packing(bits, group, n, k))
    table = torch.tensor(CODE_BOOKS[row.codebook], dtype=torch.float32, device=packed.device) if row.codebook else None
    columns = None if g_idx is None else g_idx.long()
    # Contiguous as the fake kernel says, whatever the order in which the codes were stored.
    dense = packed.new_empty((n, k), dtype=dtype)
    for span in row_pieces(n, k):
        codes, factors, points = found.codes[span], found.scales[span], None if found.zeros is None else found.zeros[span]
        values = codes.to(torch.float32) if table is None else table[codes.long()]
        if columns is None:
            values = values.reshape(len(codes), k // group, group)
            factors, points = factors[:, :, None], None if points is None else points[:, :, None]
        else:
            factors, points = factors[:, columns], None if points is None else points[:, columns]
        if points is not None:
            values -= points.to(torch.float32)
        dense[span] = values.mul_(factors.to(torch.float32)).reshape(-1, k).to(found.scales.dtype)
    return dense


def _dequantize_packed_fake(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    g_idx: Tensor | None,
    layout: str,
    bits: int,
    group: int,
    n: int,
    k: int,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty((n, k), dtype=dtype)


LIBRARY.impl("dequantize_packed", _dequantize_packed, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::dequantize_packed", _dequantize_packed_fake, lib=LIBRARY)
dequantize_packed = torch.ops.qcompile.dequantize_packed.default
