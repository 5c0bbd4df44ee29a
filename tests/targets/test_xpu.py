"""XPU packing and calls, end to end against operators emulated from their contract; and what is shown where they are absent."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.tracing import call_graph, operators
from support.weights import agreement_db, random_weight, reference
from support.xpu_operators import GEMM_SCHEMA, emulated, unpacked
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.errors import MissingOperatorError
from qcompile.hardware import platform
from qcompile.kernel import Kernel, Site, site_of
from qcompile.meaning import Operands, QuantizedWeight
from qcompile.targets.nibbles import nibbles
from qcompile.targets.registry import find
from qcompile.targets.xpu import GEMM

ROWS = ("xpu.int4_gemm_w4a16", "xpu.int4pack")


@pytest.fixture
def emulation() -> Iterator[None]:
    with emulated():
        yield


def prepared(
    name: str, weight: QuantizedWeight, dtype: torch.dtype, bias: Tensor | None = None
) -> tuple[Kernel, Site, tuple[Tensor, ...]]:
    row = find(name)
    site = replace(site_of(weight, dtype, bias, NO_ACTIVATION_QUANT), device="xpu")
    assert row.reasons(site, platform("xpu")) == ()
    return row, site, row.packed(Operands(weight.codes, weight.scales, weight.zeros, weight.perm, bias), site)


def fitting(weight: QuantizedWeight) -> QuantizedWeight:
    """The weight with zero points that four bits hold."""
    return weight if weight.zeros is None else replace(weight, zeros=weight.zeros.clamp(max=15))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("n", "k", "group"), [(8, 32, 32), (32, 16 * 32, 64), (64, 64, 64), (40, 384, 384), (64, 512, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ROWS)
def test_numbers(
    emulation: None, name: str, n: int, k: int, group: int, dtype: torch.dtype, symmetric: bool, act_order: bool
) -> None:
    made = random_weight(n, k, group, symmetric=symmetric, act_order=act_order, scale_dtype=dtype)
    for bias in (None, torch.randn(n)):
        weight = fitting(made)
        row, site, packed = prepared(name, weight, dtype, bias)
        for leading in ((0,), (1,), (7,), (2, 3), ()):
            x = torch.randn(*leading, k).to(dtype)
            y, expected = row.run(x, packed, site), reference(x, weight, bias)
            assert (y.dtype, y.shape) == (dtype, expected.shape)
            if y.numel():
                assert agreement_db(expected, y, x, weight) > 45


def test_layouts_follow_the_contract() -> None:
    weight = fitting(random_weight(16, 64, 32, symmetric=False, scale_dtype=torch.float16))
    assert weight.zeros is not None
    _, _, (words, scales, zeros) = prepared(ROWS[0], weight, torch.float16)
    assert (words.shape, words.dtype, words.is_contiguous(), words.t().stride(-2)) == ((16, 8), torch.int32, True, 1)
    assert torch.equal(unpacked(words), weight.codes.int())
    assert (scales.shape, scales.is_contiguous()) == ((2, 16), True)
    assert (zeros.shape, zeros.dtype) == ((2, 2), torch.int32)
    assert torch.equal(unpacked(zeros), weight.zeros.t().int()), "true zero points, nothing added"


def test_a_symmetric_weight_selects_the_scalar_path() -> None:
    weight = random_weight(16, 64, 32, scale_dtype=torch.float16)
    _, _, (words, _, zeros) = prepared(ROWS[0], weight, torch.float16)
    assert (zeros.tolist(), zeros.dtype, zeros.dim()) == ([8], torch.int8, 1)
    assert torch.equal(unpacked(words), weight.codes.int() + 8)


def test_square_zero_point_tensors_are_not_transposed() -> None:
    """[G, N/8] and [N/8, G] have the same shape here: only the values tell."""
    weight = fitting(random_weight(64, 256, 32, symmetric=False, scale_dtype=torch.float16))
    assert weight.zeros is not None
    _, _, packed = prepared(ROWS[0], weight, torch.float16)
    assert packed[2].shape == (8, 8)
    assert torch.equal(unpacked(packed[2]), weight.zeros.t().int())


def test_every_nibble_is_kept() -> None:
    values = torch.arange(16, dtype=torch.int8).repeat(3, 1)
    assert torch.equal(unpacked(nibbles(values)), values.int())


@pytest.mark.parametrize("name", ROWS)
def test_a_contradiction_would_be_seen(emulation: None, name: str) -> None:
    """The emulation reads memory as the kernels do, so these tests can fail: a transposed zero-point tensor gives wrong numbers."""
    weight = fitting(random_weight(64, 256, 32, symmetric=False, scale_dtype=torch.float16))
    row, site, packed = prepared(name, weight, torch.float16)
    wrong = packed[2].t().contiguous().view(packed[2].shape)
    x = torch.randn(16, 256).half()
    assert agreement_db(reference(x, weight), row.run(x, (*packed[:2], wrong, *packed[3:]), site), x, weight) < 20


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (GEMM_SCHEMA.replace(", Tensor? g_idx", ""), "no argument g_idx"),
        (GEMM_SCHEMA.replace("Tensor? g_idx", "Tensor? g_idx, bool fast"), "demands fast"),
    ],
)
def test_another_signature_is_a_reason(schema: str, words: str) -> None:
    weight = random_weight(16, 64, 32)
    site = replace(site_of(weight, torch.bfloat16, None, NO_ACTIVATION_QUANT), device="xpu")
    with emulated(schema):
        assert words in find(ROWS[0]).reasons(site, platform("xpu"))[0]


def test_a_graph_can_be_rewritten_where_the_library_is_absent() -> None:
    assert GEMM.live() is None
    weight = random_weight(16, 64, 32)
    row, site, packed = prepared(ROWS[0], weight, torch.bfloat16)
    graph = call_graph(row, site, packed)
    assert "qcompile.absent_xpu_C_int4_gemm_w4a16.default" in operators(graph)
    with pytest.raises(MissingOperatorError, match="_xpu_C::int4_gemm_w4a16 is not registered"):
        row.run(torch.randn(1, 64).bfloat16(), packed, site)


@pytest.mark.parametrize("name", ROWS)
def test_the_call_is_few_operators_for_any_size(emulation: None, name: str) -> None:
    weight = fitting(random_weight(16, 64, 32, symmetric=False, act_order=True))
    row, site, packed = prepared(name, weight, torch.bfloat16, torch.randn(16))
    graph = call_graph(row, site, packed)
    assert len([name for name in operators(graph) if "sym_size" not in name]) <= 5
    x = torch.randn(2, 9, 64).bfloat16()
    assert torch.equal(graph(x, *packed), row.run(x, packed, site))
