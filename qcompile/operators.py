"""The operators of the `qcompile` namespace: each has an executable reference on every device and a fake kernel.

First the canonical ones, then those of the front doors: the dequantization of a packed weight in any known layout, and the product
of a whole layer, one operator because Dynamo traces every layer of a model. Our back end has AOTAutograd take the product apart
(`TAKEN_APART`), so that recognition sees `dequantize_packed` and a product.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.errors import ReleasedWeightError, UnknownNameError
from qcompile.formats.layouts import LAYOUTS, Packing, Stored
from qcompile.meaning import Operands, dense_of, in_groups, row_pieces, ungrouped, values_of
from qcompile.torch_internals.tensors import check

# FRAGMENT, because the compiled library (qcompile/_C.so) adds operators to the same namespace.
LIBRARY = torch.library.Library("qcompile", "FRAGMENT")

_PIECE = 1 << 21  # elements

LIBRARY.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros=None, Tensor? perm=None, Tensor? bias=None, "
    "Tensor? act_scale=None, Tensor? act_zero=None, Tensor? outer=None, Tensor? offsets=None, Tensor? outer_offset=None, *, "
    "int group, str codebook='', str activation='none', int outer_group=0) -> Tensor"
)
LIBRARY.define("fake_quantize(Tensor x, Tensor? scale, Tensor? zero, str activation) -> Tensor")


def _quantized_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    perm: Tensor | None = None,
    bias: Tensor | None = None,
    act_scale: Tensor | None = None,
    act_zero: Tensor | None = None,
    outer: Tensor | None = None,
    offsets: Tensor | None = None,
    outer_offset: Tensor | None = None,
    *,
    group: int,
    codebook: str = "",
    activation: str = "none",
    outer_group: int = 0,
) -> Tensor:
    """y = act(x)[..., perm] @ W.T + bias with W of meaning.QuantizedWeight; x [..., K] -> y [..., N] in the dtype of x."""
    rounded = ActivationQuant.parse(activation).apply(x, act_scale, act_zero)
    if perm is not None:
        rounded = rounded.index_select(-1, perm)
    # Some rows at a time: in float32 the weight of a large layer would be hundreds of megabytes.
    stored = Operands(codes, scales, zeros, outer=outer, offsets=offsets, outer_offset=outer_offset)
    weight = torch.empty(codes.shape, dtype=x.dtype, device=codes.device)
    for part in row_pieces(codes.shape[0], codes.shape[1], _PIECE):
        weight[part] = dense_of(stored.rows(part), group, codebook, outer_group).to(x.dtype)
    return _product(rounded, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., K] @ weight.T [K, N] + bias, in the dtype of x and weight."""
    if x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] % 2:
        # With AMX, oneDNN takes pairs along K: for the last one of an odd K it also reads the next row, whose NaN times 0 is NaN.
        x, weight = (torch.nn.functional.pad(item, (0, 1)) for item in (x, weight))
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _quantized_linear_fake(x: Tensor, codes: Tensor, *_: object, **__: object) -> Tensor:
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
    "ScalarType dtype, int rows=1) -> Tensor"
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
    rows: int = 1,
) -> Tensor:
    """W [n, k] of a packed weight in `dtype`; layouts, tensors and their shapes: formats.layouts.

    (code - zero) is exact, and its product with the scale is rounded once, to the dtype of the scales (NVFP4 and MXFP4:
    straight to `dtype`; NVFP4's scale is the quotient of block and global scale, rounded to float32).
    That is what compressed-tensors, GPTQ's and AWQ's own dequantizations give bit by bit: an integer of 9 bits times a 16-bit
    float is exact in float32. Then it is cast to `dtype`. g_idx [k]: the group of each column (act-order); `group` is then only
    its size; rows: outputs that share a scale. Raises ReleasedWeightError if the raw tensors were freed, UnknownNameError for an
    unknown layout.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    for part in (packed, scales, zeros, g_idx):
        if part is not None and part.numel() and part.untyped_storage().size() == 0:
            raise ReleasedWeightError(getattr(part, NAME_ATTRIBUTE, f"the {layout} weight [{n}, {k}]"))
    row = LAYOUTS[layout]
    # Without g_idx the unpacked columns keep their order, whatever the sizes of the groups are.
    found = row.unpack(Stored(packed, scales, zeros), Packing(bits, group, n, k, rows))
    scales = found.scales if row.scales is None else row.scales(Stored(packed, scales, zeros))
    columns = None if g_idx is None else g_idx.long()
    # Contiguous as the fake kernel says, whatever the order in which the codes were stored.
    dense = packed.new_empty((n, k), dtype=dtype)
    for span in row_pieces(n, k):
        codes, factors, points = found.codes[span], scales[span], None if found.zeros is None else found.zeros[span]
        values = values_of(codes, row.codebook)
        if columns is None:
            values = in_groups(values, group)
            factors, points = factors[:, :, None], None if points is None else points[:, :, None]
        else:
            factors, points = factors[:, columns], None if points is None else points[:, columns]
        if points is not None:
            values -= points.to(torch.float32)
        scaled = values.mul_(factors.to(torch.float32)).to(scales.dtype)
        dense[span] = ungrouped(scaled, k) if columns is None else scaled
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
    rows: int = 1,
) -> Tensor:
    return packed.new_empty((n, k), dtype=dtype)


LIBRARY.impl("dequantize_packed", _dequantize_packed, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::dequantize_packed", _dequantize_packed_fake, lib=LIBRARY)
dequantize_packed = torch.ops.qcompile.dequantize_packed.default


class Structure(NamedTuple):
    """The static arguments of one layer's dequantization.

    activation: the spec of activations.ActivationQuant, "none" for weight-only layers; rows: outputs that share a scale.
    """

    layout: str
    bits: int
    group: int
    n: int
    k: int
    activation: str = "none"
    rows: int = 1

    @property
    def spec(self) -> str:
        """All in one text: Dynamo guards it as one value on every call, a tuple as eight."""
        layout, bits, group, n, k, activation, rows = self
        return f"{layout} {bits} {group} {n} {k} {rows} {activation}"

    @staticmethod
    @cache
    def parse(spec: str) -> "Structure":
        """What `spec` gave."""
        layout, bits, group, n, k, rows, activation = spec.split()
        return Structure(layout, int(bits), int(group), int(n), int(k), activation, int(rows))


LIBRARY.define(
    "packed_linear(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? g_idx, Tensor? bias, str spec) -> Tensor"
)


def dense_weight(
    structure: Structure, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """W [n, k] in `dtype`, as `dequantize_packed` gives it."""
    layout, bits, group, n, k, _, rows = structure
    dense: Tensor = dequantize_packed(packed, scales, zeros, g_idx, layout, bits, group, n, k, dtype, rows)
    return dense


def _packed_linear(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, bias: Tensor | None, spec: str
) -> Tensor:
    """y = x @ W.T + bias in the dtype of x, x [..., K] -> [..., N]; W of dequantize_packed, spec of Structure.

    The activation of `spec` is not applied: x comes rounded.
    """
    weight = dense_weight(Structure.parse(spec), packed, scales, zeros, g_idx, x.dtype)
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _packed_linear_fake(
    x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, bias: Tensor | None, spec: str
) -> Tensor:
    structure = Structure.parse(spec)
    check(x.shape[-1] == structure.k, lambda: f"expected x of shape [..., {structure.k}], got {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], structure.n))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, scales, zeros, g_idx, bias, spec = inputs
    ctx.save_for_backward(packed, scales, zeros, g_idx)
    ctx.spec, ctx.bias = spec, None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Gradients of x and bias. A packed weight is a constant: its scales get none, as from `dequantize_packed`."""
    packed, scales, zeros, g_idx = ctx.saved_tensors
    of_x = (
        grad @ dense_weight(Structure.parse(ctx.spec), packed, scales, zeros, g_idx, grad.dtype)
        if ctx.needs_input_grad[0]
        else None
    )
    of_bias = grad.flatten(0, -2).sum(0).to(ctx.bias) if ctx.needs_input_grad[5] else None
    return of_x, None, None, None, None, of_bias, None


LIBRARY.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")
torch.library.register_fake("qcompile::packed_linear", _packed_linear_fake, lib=LIBRARY)
torch.library.register_autograd("qcompile::packed_linear", _backward, setup_context=_keep, lib=LIBRARY)
packed_linear = torch.ops.qcompile.packed_linear.default
# For AOTAutograd: operator -> what it consists of.
TAKEN_APART = {packed_linear: _packed_linear}
