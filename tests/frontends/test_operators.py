"""dequantize_packed is a well-behaved operator: its fake kernel and strides agree with what it computes; errors say what to do."""

import pytest
import torch
from support.checkpoints import awq_tensors, gptq_tensors
from torch import Tensor

from qcompile.errors import ReleasedWeightError, UnknownNameError
from qcompile.operators import Structure, dequantize_packed, packed_linear


def layouts() -> dict[str, tuple[Tensor, Tensor, Tensor | None, Tensor | None, str]]:
    """One valid call's tensors per layout, for a weight [16, 64] with groups of 32 (nvfp4: 16)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 64), generator=generator).int()
    zeros = torch.randint(1, 16, (16, 2), generator=generator).int()
    scales = torch.rand(16, 2, generator=generator)
    g_idx = (torch.arange(64) % 2).int()
    order = (torch.arange(64) // 32).int()
    one, two = gptq_tensors(codes, scales, zeros, g_idx, 4, v2=False), gptq_tensors(codes, scales, zeros, order, 4, v2=True)
    awq = awq_tensors(codes, scales, zeros)
    words = one["qweight"].t().contiguous()
    signed = (codes - 8).to(torch.int8)
    byte = torch.randint(0, 256, (16, 32), generator=generator).to(torch.uint8)
    numbers = torch.randn(16, 64, generator=generator).to(torch.float8_e4m3fn)
    blocks = torch.rand(16, 4, generator=generator).to(torch.float8_e4m3fn)
    return {
        "ct_pack": (words, scales, None, g_idx, "ct_pack"),
        "ct_pack_plain_zeros": (words, scales, (zeros - 8).to(torch.int8), None, "ct_pack_plain_zeros"),
        "ct_int8": (signed, scales, (zeros - 8).to(torch.int8), None, "ct_int8"),
        "gptq": (one["qweight"], one["scales"], one["qzeros"], one["g_idx"], "gptq"),
        "gptq_v2": (two["qweight"], two["scales"], two["qzeros"], None, "gptq_v2"),
        "gptq_wrapped": (one["qweight"], one["scales"], one["qzeros"], None, "gptq_wrapped"),
        "awq": (awq["qweight"], awq["scales"], awq["qzeros"], None, "awq"),
        "nvfp4": (byte, blocks, torch.tensor([2.5]), None, "nvfp4"),
        "ct_e4m3": (numbers, scales, None, g_idx, "ct_e4m3"),
        "mxfp8": (numbers, byte[:, :2] % 8 + 120, None, None, "mxfp8"),
        "mxfp4": (byte, byte[:, :2] % 8 + 124, None, None, "mxfp4"),
    }


@pytest.mark.parametrize("layout", list(layouts()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_rules(layout: str, dtype: torch.dtype) -> None:
    tensors = layouts()[layout]
    arguments = (*tensors, 4, 16 if layout == "nvfp4" else 32, 16, 64, dtype)
    assert dequantize_packed(*arguments).is_contiguous()
    # The schema check multiplies its arguments, which torch cannot do with float8.
    checks = ["test_faketensor", "test_aot_dispatch_dynamic", *([] if layout in {"nvfp4", "ct_e4m3", "mxfp8"} else ["test_schema"])]
    torch.library.opcheck(dequantize_packed, arguments, test_utils=checks)


def test_rounding_is_once_in_the_dtype_of_the_scales() -> None:
    packed, scales, zeros, order, layout = layouts()["gptq"]
    exact = dequantize_packed(packed, scales, zeros, order, layout, 4, 32, 16, 64, torch.float32)
    half = dequantize_packed(packed, scales.half(), zeros, order, layout, 4, 32, 16, 64, torch.float32)
    columns = torch.arange(64) % 2
    codes = torch.round(exact / scales.t()[:, columns])
    assert torch.equal(half, (codes.half() * scales.half().t()[:, columns]).float())


def test_a_released_weight_says_so() -> None:
    packed, scales, zeros, order, layout = layouts()["gptq"]
    packed = packed.clone()
    packed.qcompile_name = "model.layers.3.mlp.up_proj.qweight"  # type: ignore[attr-defined]
    packed.untyped_storage().resize_(0)
    with pytest.raises(ReleasedWeightError, match=r"model\.layers\.3\.mlp\.up_proj\.qweight was released"):
        dequantize_packed(packed, scales, zeros, order, layout, 4, 32, 16, 64, torch.float32)


def test_an_unknown_layout_lists_the_known_ones() -> None:
    packed, scales, zeros, order, _ = layouts()["gptq"]
    with pytest.raises(UnknownNameError, match="ct_pack"):
        dequantize_packed(packed, scales, zeros, order, "gptk", 4, 32, 16, 64, torch.float32)


@pytest.mark.parametrize("layout", list(layouts()))
@pytest.mark.parametrize("bias", [None, torch.ones(16, dtype=torch.bfloat16)], ids=["no bias", "bias"])
def test_the_product_of_a_packed_weight(layout: str, bias: Tensor | None) -> None:
    tensors = layouts()[layout]
    group = 16 if layout == "nvfp4" else 32
    spec = Structure(layout, 4, group, 16, 64).spec
    weight = dequantize_packed(*tensors, 4, group, 16, 64, torch.float32)
    for shape in ((64,), (0, 64), (3, 64), (2, 3, 64)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        arguments = (x, *tensors[:4], bias, spec)
        assert torch.equal(packed_linear(*arguments), torch.nn.functional.linear(x, weight, None if bias is None else bias.float()))
        checks = [
            "test_faketensor",
            "test_autograd_registration",
            *([] if layout in {"nvfp4", "ct_e4m3", "mxfp8"} else ["test_schema"]),
        ]
        torch.library.opcheck(packed_linear, arguments, test_utils=checks)


def test_gradients_of_the_product() -> None:
    tensors = layouts()["gptq"]
    spec = Structure("gptq", 4, 32, 16, 64).spec
    x, bias = torch.randn(2, 3, 64, requires_grad=True), torch.randn(16, requires_grad=True)
    weight = dequantize_packed(*tensors, 4, 32, 16, 64, torch.float32)
    wanted = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias).square().sum(), (x, bias))
    got = torch.autograd.grad(packed_linear(x, *tensors[:4], bias, spec).square().sum(), (x, bias))
    for want, have in zip(wanted, got, strict=True):
        torch.testing.assert_close(have, want)
    packed, scales, *rest = tensors[:4]
    packed_linear(x, packed, scales.requires_grad_(), *rest, bias, spec).sum().backward()
    assert x.grad is not None and scales.grad is None


def test_a_wrong_width_is_named_while_tracing() -> None:
    tensors = layouts()["gptq"]
    with (
        torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=r"expected x of shape \[\.\.\., 64\]"),
    ):
        packed_linear(torch.zeros(3, 32), *tensors[:4], None, Structure("gptq", 4, 32, 16, 64).spec)
