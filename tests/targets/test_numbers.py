"""Every row of these targets against the float32 reference: all kinds of weights, edge shapes, leading dimensions, biases."""

import pytest
import torch
from support.rows import needed
from support.weights import agreement_db, random_weight, reference

from qcompile.activations import ActivationQuant
from qcompile.api import pack_linear
from qcompile.meaning import QuantizedWeight, sqnr_db

LEAST_DB = 40.0
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
OURS = ("zentorch.woq_linear", "zentorch.dynamic_qlinear", "torch.int4pack", "torch.int8pack", "torch.qlinear_int8")
LEADING = ((0,), (1,), (2,), (7,), (8,), (33,), (), (2, 3), (2, 0, 3), (2, 1, 2, 2))

WOQ_SHAPES = ((1, 8, 8), (17, 24, 8), (48, 128, 32), (33, 200, 40), (100, 256, 256))
INT4PACK_SHAPES = ((16, 32, 32), (48, 512, 64), (80, 768, 384), (64, 512, 512))
REFERENCE_SHAPES = ((1, 1, 1), (7, 12, 3), (33, 64, 32))
WEIGHT_ONLY = (
    *(("zentorch.woq_linear", *shape, BF16) for shape in WOQ_SHAPES),
    *(("torch.int4pack", *shape, dtype) for shape in INT4PACK_SHAPES for dtype in (BF16, F16, F32)),
    *(("reference.quantized_linear", *shape, dtype) for shape in REFERENCE_SHAPES for dtype in (BF16, F16, F32)),
)


def check(weight: QuantizedWeight, kernel: str, dtype: torch.dtype, leading: tuple[int, ...], bias: torch.Tensor | None) -> None:
    x = torch.randn(*leading, weight.k).to(dtype)
    y = pack_linear(weight, kernel, dtype=dtype, bias=bias)(x)
    expected = reference(x, weight, bias)
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    if y.numel():
        assert agreement_db(expected, y, x, weight) >= LEAST_DB


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("kernel", "n", "k", "group", "dtype"), WEIGHT_ONLY)
def test_weight_only(kernel: str, n: int, k: int, group: int, dtype: torch.dtype, symmetric: bool, act_order: bool) -> None:
    needed(kernel)
    scale_dtype = F16 if dtype == F16 else F32
    weight = random_weight(n, k, group, symmetric=symmetric, act_order=act_order, scale_dtype=scale_dtype)
    torch.manual_seed(n + k)
    for leading in LEADING:
        check(weight, kernel, dtype, leading, None)
    check(weight, kernel, dtype, (3,), torch.randn(n))


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kernel", ["zentorch.woq_linear", "torch.int4pack"])
def test_narrower_codes_run_in_four_bits(kernel: str, symmetric: bool, bits: int) -> None:
    needed(kernel)
    check(random_weight(32, 128, 32, bits=bits, symmetric=symmetric), kernel, BF16, (5,), None)


@pytest.mark.parametrize("scale_dtype", [BF16, F16, F32])
@pytest.mark.parametrize("bias_dtype", [BF16, F16, F32])
@pytest.mark.parametrize("kernel", ["zentorch.woq_linear", "torch.int4pack", "zentorch.dynamic_qlinear", "torch.int8pack"])
def test_dtypes_of_scales_and_biases(kernel: str, scale_dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    needed(kernel)
    wide = kernel.endswith(("int8pack", "qlinear"))
    weight = random_weight(32, 128, 0 if wide else 32, bits=8 if wide else 4, scale_dtype=scale_dtype)
    bias = torch.randn(32).to(bias_dtype)
    x = torch.randn(4, 128).to(BF16)
    rounding = needed(kernel).activation or ActivationQuant()
    y = pack_linear(weight, kernel, bias=bias)(x)
    assert agreement_db(reference(x, weight, bias, rounding), y, x, weight) >= LEAST_DB


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 16), (15, 32), (17, 48), (100, 256), (3, 4096)])
def test_int8_weight_only(n: int, k: int, act_order: bool, dtype: torch.dtype) -> None:
    needed("torch.int8pack")
    weight = random_weight(n, k, bits=8, act_order=act_order, scale_dtype=F16)
    for leading in LEADING:
        check(weight, "torch.int8pack", dtype, leading, None)
    check(weight, "torch.int8pack", dtype, (3,), torch.randn(n))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (4, False), (6, False)])
@pytest.mark.parametrize(("n", "k"), [(1, 4), (15, 20), (16, 64), (33, 1028), (100, 2048), (48, 2052), (130, 4096)])
def test_zentorch_rounds_activations_by_its_own_rule(n: int, k: int, bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    row = needed("zentorch.dynamic_qlinear")
    assert row.activation is not None
    weight = random_weight(n, k, bits=bits, symmetric=symmetric, act_order=n == 33)
    bias = torch.randn(n) if n == 100 else None
    run = pack_linear(weight, row.name, dtype=dtype, bias=bias)
    for leading in LEADING:
        x = torch.randn(*leading, k).to(dtype)
        y, expected = run(x), reference(x, weight, bias, row.activation)
        assert (y.dtype, y.shape) == (dtype, expected.shape)
        if y.numel():
            assert agreement_db(expected, y, x, weight) >= (100 if dtype == F32 else LEAST_DB)


ROUNDINGS = (
    ActivationQuant("token"),
    ActivationQuant("token", 127.0, -127),
    ActivationQuant("token_asymmetric"),
    ActivationQuant("tensor"),
    ActivationQuant("token", arithmetic="input"),
)


@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: rounding.spec)
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, True), (4, False), (6, False)])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 7), (64, 500)])
def test_onednn_rounds_activations_exactly_as_asked(
    n: int, k: int, bits: int, symmetric: bool, rounding: ActivationQuant, with_zero: bool
) -> None:
    needed("torch.qlinear_int8")
    static = rounding.kind == "tensor"
    if with_zero and not static:
        rounding = ActivationQuant(rounding.kind, rounding.divisor, -127 if rounding.kind == "token" else -128)
    scale = torch.tensor([0.027]) if static else None
    zero = torch.tensor([-19], dtype=torch.int8) if static and with_zero else None
    weight = random_weight(n, k, bits=bits, symmetric=symmetric, act_order=n == 33)
    bias = torch.randn(n) if n == 64 else None
    for dtype, least in ((F32, 100.0), (BF16, LEAST_DB)):
        run = pack_linear(weight, "torch.qlinear_int8", dtype=dtype, bias=bias, activation=rounding, act_scale=scale, act_zero=zero)
        for leading in ((0,), (1,), (33,), (2, 3)):
            x = torch.randn(*leading, k).to(dtype)
            wanted = rounding.apply(x, scale, zero)  # in the dtype of x: "input" arithmetic rounds there
            y, expected = run(x), reference(wanted, weight, bias)
            assert (y.dtype, y.shape) == (dtype, expected.shape)
            if y.numel():
                assert agreement_db(expected, y, x, weight) >= least


@pytest.mark.parametrize("kernel", ["zentorch.dynamic_qlinear", "torch.qlinear_int8"])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_rounding_activations_costs_no_more_than_the_checkpoints_own(kernel: str, dtype: torch.dtype) -> None:
    needed(kernel)
    asked = ActivationQuant("token")
    weight = random_weight(256, 1024, bits=8)
    x = (torch.randn(64, 1024) * torch.logspace(-2, 2, 64)[:, None]).to(dtype)
    x[5, 17] = 40 * float(x[5].abs().max())  # an outlier
    x[6] = 0
    exact = reference(x, weight)
    y = pack_linear(weight, kernel, dtype=dtype, activation=asked)(x)
    assert sqnr_db(exact, y) >= sqnr_db(exact, reference(x, weight, None, asked)) - 1.0
    assert not bool(y[6].any())


@pytest.mark.parametrize("kernel", OURS)
def test_strided_inputs_give_the_same_numbers(kernel: str) -> None:
    needed(kernel)
    wide = "int4" not in kernel and "woq" not in kernel
    weight = random_weight(32, 128, 0 if wide else 32, bits=8 if wide else 4)
    run = pack_linear(weight, kernel)
    x = torch.randn(6, 128).to(BF16)
    holes = torch.zeros(12, 256, dtype=BF16)
    holes[::2, ::2] = x
    assert torch.equal(run(holes[::2, ::2]), run(x))
    assert torch.equal(run(x.t().contiguous().t()), run(x))
    assert torch.equal(run(x[2:5]), run(x)[2:5])


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize(("n", "k"), [(15, 65), (7, 63), (33, 1)])
def test_nan_stays_in_its_row_where_k_is_odd(n: int, k: int, dtype: torch.dtype) -> None:
    """oneDNN's own product of bfloat16 lets it into the row before, on processors with AMX."""
    x = torch.randn(64, k).to(dtype)
    x[33] = torch.nan
    y = pack_linear(random_weight(n, k, bits=4, group=k), "reference.quantized_linear", dtype=dtype)(x)
    assert y.isnan().any(1).nonzero().flatten().tolist() == [33]
