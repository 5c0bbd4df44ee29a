"""Attention at every level equals float64 over head groups, widths, strides and masks, and treats unseen keys as PyTorch does."""

import math
from collections.abc import Callable

import pytest
import torch
from support.native_weights import EVERY_DTYPE, EVERY_LEVEL, require_kernels
from torch import Tensor

from qcompile.hardware import platform
from qcompile.targets import native_attention

Shape = tuple[int, int, int, int, int, int]
# Relative L2 error: rounding of the output and, in bfloat16, of the softmax's weights; float32 sums.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 4e-4, torch.float32: 1e-6}
# batch, heads, K/V heads, queries, keys, width: around tiles of 16 keys, blocks of 64, registers of 16 and 32 values.
SHAPES: tuple[Shape, ...] = (
    (1, 32, 4, 1, 256, 64),
    (2, 4, 4, 3, 77, 40),
    (1, 8, 1, 1, 1, 8),
    (3, 6, 2, 5, 130, 20),
    (1, 5, 5, 2, 64, 128),
    (1, 9, 3, 8, 65, 33),
    (2, 2, 1, 17, 100, 64),
    (1, 4, 4, 20, 33, 7),
    (1, 3, 1, 1, 1000, 96),
)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()
    reasons = native_attention.missing(platform())
    if reasons:
        pytest.skip(reasons[0])


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, nan: bool = False, level: int = -1
) -> Tensor:
    scale = q.shape[-1] ** -0.5
    result: Tensor = torch.ops.qcompile.native_attention(q, k, v, mask, scale, causal, nan_if_unseen=nan, level=level)
    return result


def expected(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, nan: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    scores = q.double() @ k.double().repeat_interleave(group, 1).transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    weights = torch.softmax(scores, -1)
    return (weights if nan else weights.nan_to_num()) @ v.double().repeat_interleave(group, 1)


def operands(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q as [batch, queries, heads, width] turned, k the beginning of a longer cache, v turned: three kinds of strides."""
    batch, heads, kv_heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    q = torch.randn(batch, queries, heads, width, generator=generator).to(dtype).transpose(1, 2)
    k = torch.randn(batch, kv_heads, keys + 13, width, generator=generator).to(dtype)[:, :, :keys]
    v = torch.randn(batch, keys, kv_heads, width, generator=generator).to(dtype).transpose(1, 2)
    return q, k, v


def hidden_tail(shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape[0], 1, shape[3], shape[4], dtype=dtype).masked_fill(torch.arange(shape[4]) > shape[4] // 2, -math.inf)


def biases(shape: Shape, _: torch.dtype) -> Tensor:
    size = (1, shape[1], shape[3], shape[4])
    return torch.randn(size).masked_fill(torch.rand(size) > 0.7, -math.inf)


MASKS: dict[str, Callable[[Shape, torch.dtype], Tensor | None]] = {
    "none": lambda _, __: None,
    "bool": lambda s, _: torch.rand(1, 1, s[3], s[4]) > 0.3,
    "hidden tail": hidden_tail,
    "least number": lambda s, d: hidden_tail(s, d).clamp_min(torch.finfo(d).min),
    "bias of every head": biases,
    "one row for all": lambda s, _: torch.randn(s[0], 1, 1, s[4]),
    "turned": lambda s, _: (torch.rand(s[4], s[3]) > 0.5).t(),
    "nothing seen": lambda s, _: torch.zeros(s[3], s[4], dtype=torch.bool),
}


@EVERY_LEVEL
@EVERY_DTYPE
@pytest.mark.parametrize("kind", MASKS)
def test_equals_float64(kind: str, dtype: torch.dtype, level: int) -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        q, k, v = operands(shape, dtype)
        mask = MASKS[kind](shape, dtype)
        for causal in (False, True):
            for nan in (False, True):
                got, want = attention(q, k, v, mask, causal=causal, nan=nan, level=level), expected(q, k, v, mask, causal, nan)
                assert got.dtype is dtype and got.stride() == torch.empty_like(q).stride()
                assert torch.equal(got.isnan(), want.isnan()), (shape, causal, nan)
                error = (got.double() - want).nan_to_num().norm() / want.nan_to_num().norm().clamp_min(1e-30)
                assert error <= TOLERANCE[dtype], (shape, causal, float(error))


def test_the_slowest_level_takes_few_queries() -> None:
    levels = str(torch.ops.qcompile.native_isa_levels()).split(",")
    assert torch.ops.qcompile.native_attention_most_queries(levels.index("generic")) == 64
    assert torch.ops.qcompile.native_attention_most_queries() >= 64


@EVERY_DTYPE
@pytest.mark.parametrize("queries", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_pytorch_whatever_the_number_of_queries(queries: int, causal: bool, dtype: torch.dtype) -> None:
    q, k, v = operands((2, 6, 2, queries, 150, 32), dtype)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    got = attention(q, k, v, causal=causal)
    assert (got.float() - want.float()).norm() <= 2 * TOLERANCE[dtype] * want.float().norm()


def test_pieces_of_one_head_are_joined_whatever_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    q, k, v = operands((1, 5, 1, 2, 3000, 64), torch.float32)
    mask = torch.randn(2, 3000).masked_fill(torch.arange(3000) < 1700, -math.inf)
    results: list[Tensor] = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(attention(q, k, v, mask))
    finally:
        torch.set_num_threads(threads)
    want = expected(q, k, v, mask, False, False)
    for result in results:
        assert (result.double() - want).norm() <= 1e-6 * want.norm()


def test_hidden_keys_are_not_read() -> None:
    q, k, v = operands((1, 4, 2, 1, 512, 64), torch.bfloat16)
    k[:, :, 256:] = math.nan
    v[:, :, 256:] = math.nan
    for hidden in (-math.inf, torch.finfo(torch.bfloat16).min):
        mask = torch.zeros(1, 1, 1, 512, dtype=torch.bfloat16)
        mask[..., 256:] = hidden
        assert bool(attention(q, k, v, mask).isfinite().all())


def test_not_a_number_is_not_hidden() -> None:
    q, k, v = operands((1, 2, 2, 1, 100, 16), torch.float32)
    k[0, 0, 50, 3] = math.nan
    got = attention(q, k, v)
    assert bool(got[0, 0].isnan().all()) and bool(got[0, 1].isfinite().all())


def test_no_keys_and_no_queries() -> None:
    q, k, v = operands((1, 2, 2, 3, 5, 16), torch.float32)
    assert torch.equal(attention(q, k[:, :, :0], v[:, :, :0]), torch.zeros(1, 2, 3, 16))
    assert torch.equal(attention(q, k[:, :, :0], v[:, :, :0], nan=True), torch.zeros(1, 2, 3, 16))
    assert attention(q[:, :, :0], k, v).shape == (1, 2, 0, 16)
    assert attention(q[:0], k[:0], v[:0]).shape == (0, 2, 3, 16)


Q, K = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 5, 8)
WRONG: dict[str, tuple[Callable[[], Tensor], str]] = {
    "dtype of q": (lambda: attention(Q.double(), K, K), "q: expected bfloat16 or float16 or float32, got float64"),
    "dtype of v": (lambda: attention(Q, K, K.half()), "v: expected float32, got float16"),
    "dims": (lambda: attention(Q[0], K, K), r"q: expected shape \[batch, heads, rows, width\], got \[4, 2, 8\]"),
    "width": (lambda: attention(Q, K[..., :4], K), r"k: expected \[1, K/V heads, keys, 8\].*got \[1, 2, 5, 4\]"),
    "heads": (lambda: attention(Q[:, :3], K, K), "k: expected a number of heads that divides the 3 of q, got 2"),
    "v": (lambda: attention(Q, K, K[:, :, :4]), r"v: expected shape \[1, 2, 5, 8\], got \[1, 2, 4, 8\]"),
    "mask": (
        lambda: attention(Q, K, K, torch.zeros(2, 4)),
        r"mask: expected a shape that broadcasts to \[1, 4, 2, 5\], got \[2, 4\]",
    ),
    "mask dtype": (lambda: attention(Q, K, K, torch.zeros(5).long()), "mask: expected bool or .*got int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, text = WRONG[name]
    with pytest.raises(RuntimeError, match=text):
        call()


@pytest.mark.parametrize("queries", [1, 70])
def test_operator_is_well_behaved(queries: int) -> None:
    q, k, v = operands((1, 4, 2, queries, 20, 16), torch.float32)
    arguments = (q, k, v, torch.zeros(queries, 20), 0.25, False)
    torch.library.opcheck(torch.ops.qcompile.native_attention.default, arguments)
