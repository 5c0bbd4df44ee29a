"""What only its values give away: codes and scales found in a dense weight, and what is too near to be taken for it (lattice)."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from qcompile.codebooks import E2M1
from qcompile.meaning import dequantize
from qcompile.recognize.lattice import HALVES, INTEGERS, Weight, codes_and_zeros, findings
from qcompile.recognize.scales import Grid, Scale, group_sizes, ways

N, K, G = 24, 64, 16
BOOK = torch.tensor(E2M1)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def indices(n: int = N, k: int = K) -> Tensor:
    """Indices of sixteen entries; each occurs in every row."""
    codes = torch.randint(0, 16, (n, k), generator=random())
    codes[:, :16] = torch.arange(16)
    return codes


def grid(n: int = N, groups: int = K // G, seed: int = 1) -> Tensor:
    return torch.rand(n, groups, generator=random(seed)) * 0.05 + 0.01


def times(values: Tensor, scales: Tensor, group: int = G) -> Tensor:
    return values * scales.repeat_interleave(group, 1)[:, : values.shape[1]]


def recovered(dense: Tensor, tensors: Sequence[Tensor], sizes: Sequence[int] = ()) -> tuple[str, int, bool, int] | None:
    """(kind, bits, symmetric, group) of what was found; its operands are the dense weight again, up to that one's rounding."""
    found = next(findings(Weight(dense, tensors), sizes), None)
    if found is None:
        return None
    scales = found.scales([tensors[part.candidate] for part in found.scale.parts], *dense.shape, dense.device)
    codes, zeros = codes_and_zeros(dense, scales, found, None)
    again = dequantize(codes, scales, zeros, found.scale.group, found.codebook)
    unit = torch.finfo(dense.dtype).eps
    # Beside zero points a weight carries the rounding of the largest one in its group.
    largest = again.abs() if found.symmetric else again.abs().amax(-1, keepdim=True)
    assert bool(((again - dense.to(torch.float32)).abs() <= 2 * unit * largest).all())
    if found.codebook:
        assert torch.equal(torch.signbit(again), torch.signbit(dense))
    return found.kind, found.bits, found.symmetric, found.scale.group


@pytest.mark.parametrize("dtype", DTYPES)
def test_code_book(dtype: torch.dtype) -> None:
    scales = grid()
    assert recovered(times(BOOK[indices()], scales).to(dtype), [scales]) == ("e2m1", 4, True, G)


def test_code_book_with_negative_and_zero_scales() -> None:
    scales = grid()
    scales[::2] *= -1
    scales[1::5] = 0
    assert recovered(times(BOOK[indices()], scales), [scales]) == ("e2m1", 4, True, G)


def test_code_book_without_a_scale() -> None:
    assert recovered(BOOK[indices()], [torch.rand(3)]) == ("e2m1", 4, True, K)


def test_indices_are_no_codes() -> None:
    """The leaf that holds 0 .. 15 is not what the weight is made of."""
    scales = grid()
    dense = times(BOOK[indices()], scales)
    found = next(findings(Weight(dense, [indices().float(), indices(), scales])), None)
    assert found is not None and found.codebook == "e2m1"
    codes, _ = codes_and_zeros(dense, scales, found, None)
    assert torch.equal(codes.long(), indices())


def test_integers_come_before_a_code_book() -> None:
    """Values that are entries of e2m1 and integers of four bits at once."""
    some = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, -1.0, -2.0, -3.0, -4.0, -6.0])
    values = some[torch.randint(0, len(some), (N, K), generator=random())]
    assert recovered(times(values, grid()), [grid()]) == (INTEGERS, 4, True, G)


def test_a_doubled_table_is_integers() -> None:
    assert recovered(times(2 * BOOK[indices()], grid()), [grid()]) == (INTEGERS, 8, True, G)


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves(dtype: torch.dtype) -> None:
    assert recovered(times(indices() - 7.5, grid()).to(dtype), [grid()]) == (HALVES, 8, True, G)


STORED = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float64", "float16", "bfloat16"]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("shape", [(N, K // G), (N, 1), (N,), (1,), ()])
def test_scales_in_any_float(name: str, shape: tuple[int, ...]) -> None:
    scales = (torch.rand(shape, generator=random()) + 0.5).to(getattr(torch, name))
    wide = scales.to(torch.float32)
    wide = wide.reshape(-1, 1) if wide.dim() == 1 else wide.reshape(1, 1) if wide.dim() == 0 else wide
    group = K // wide.shape[1]
    codes = torch.randint(-128, 128, (N, K), generator=random())
    codes[:, :2] = torch.tensor([-128, 127])
    assert recovered(times(codes, wide.expand(N, -1), group), [scales]) == (INTEGERS, 8, True, group)


LEVELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inner, outer": lambda inner, outer: inner * outer,
    "inner / outer": lambda inner, outer: inner / outer,
    "outer / inner": lambda inner, outer: outer / inner,
    "1 / (inner * outer)": lambda inner, outer: 1 / (inner * outer),
}


@pytest.mark.parametrize("how", LEVELS)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("book", [True, False])
def test_two_levels(how: str, whole: bool, book: bool) -> None:
    inner: Tensor = torch.randint(3, 64, (N, K // G), generator=random())
    inner = inner if whole else inner * 0.37
    outer = torch.rand(N, generator=random()) + 0.5
    values = BOOK[indices()] if book else (indices() - 8).float()
    dense = times(values, LEVELS[how](inner.float(), outer[:, None]))
    assert recovered(dense, [outer, inner]) == ("e2m1" if book else INTEGERS, 4, True, G)


def test_scales_of_groups_alone_and_of_blocks() -> None:
    codes = indices() - 8
    row = grid(1)
    assert recovered(times(codes, row.expand(N, -1)), [row]) == (INTEGERS, 4, True, G)
    assert recovered(times(codes, row.expand(N, -1)), [row.flatten()]) == (INTEGERS, 4, True, G)
    blocks = grid(N // 8)
    assert recovered(times(codes, blocks.repeat_interleave(8, 0)), [blocks]) == (INTEGERS, 4, True, G)
    assert recovered(times(codes, blocks.repeat_interleave(8, 0)), [blocks.t()]) == (INTEGERS, 4, True, G)


@pytest.mark.parametrize(
    ("k", "group", "common"), [(80, 32, 16), (72, 64, 8), (84, 32, 4), (96, 64, 32), (100, 24, 4), (320, 128, 64)]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_short_last_group(k: int, group: int, common: int, symmetric: bool) -> None:
    scales = grid(N, -(-k // group))
    codes = indices(N, k) - (8 if symmetric else 3)
    assert recovered(times(codes, scales, group), [scales], [group]) == (INTEGERS, 4, symmetric, common)


def test_a_scale_keeps_the_dtype_it_is_stored_in() -> None:
    """Of a wider copy, computed on the way, and the tensor itself."""
    stored = grid().half()
    wide = stored.float().unsqueeze(-1)
    dense = times(indices() - 8, stored.float())
    for tensors in ([wide, stored], [stored, wide], [wide, torch.rand(3), stored]):
        found = next(findings(Weight(dense, tensors)))
        assert (
            found.scales([tensors[part.candidate] for part in found.scale.parts], *dense.shape, dense.device).dtype is torch.float16
        )


def test_group_sizes() -> None:
    assert group_sizes(2, 64) == [32]
    assert group_sizes(3, 80) == [32]
    assert group_sizes(3, 80, [30]) == [30, 32]
    assert group_sizes(2, 96, [7]) == [48, 64]
    assert group_sizes(1, 96) == [96]
    assert group_sizes(200, 96) == []


def test_ways() -> None:
    assert ways((N, 4, 1), Grid(N, K)) == [(False, 1, 16)]
    assert ways((4, N), Grid(N, K)) == [(True, 1, 16)]
    assert (False, N, K) in ways((), Grid(N, K))
    assert ways((N, 0), Grid(N, K)) == []
    assert ways((7, 5), Grid(N, K)) == []
    assert (False, 8, 16) in ways((N // 8, 4), Grid(N, K))
    assert Scale((), K).values([], 2, K, torch.device("cpu")).tolist() == [[1.0], [1.0]]


# What must not be taken for a quantized weight.

NEAR: dict[str, Callable[[], tuple[Tensor, list[Tensor]]]] = {
    "an entry off": lambda: (times(torch.where(BOOK == 2.0, 2.3, BOOK)[indices()], grid()), [grid()]),
    "an entry a little off": lambda: (times(torch.where(BOOK == 0.5, 0.55, BOOK)[indices()], grid()), [grid()]),
    "an entry too many": lambda: (
        times(torch.cat((BOOK, torch.tensor([5.25])))[torch.arange(N * K).view(N, K) % 17], grid()),
        [grid()],
    ),
    "one code off": lambda: (times(_moved(indices() - 8.0, 0.3), grid()), [grid()]),
    "one entry off": lambda: (times(_moved(BOOK[indices()], 0.2), grid()), [grid()]),
    "one column's scale off": lambda: (times(indices() - 8.0, grid()) * _column(1.1), [grid()]),
    "an offset that is no integer": lambda: (times(indices() - 6.3, grid()), [grid()]),
    "nine bits": lambda: (times(torch.randint(-256, 256, (N, K), generator=random()), grid()), [grid()]),
    "noise": lambda: (torch.randn(N, K, generator=random()), [grid()]),
    "the scale is not there": lambda: (times(indices() - 8, grid()), [grid(seed=9), torch.rand(N)]),
    "a scale with NaN": lambda: (times(indices() - 8, grid()), [grid().fill_(float("nan"))]),
}


def _moved(values: Tensor, by: float) -> Tensor:
    values = values.clone()
    values[N // 2 + 1, K - 3] += by
    return values


def _column(factor: float) -> Tensor:
    column = torch.ones(K)
    column[5] = factor
    return column


@pytest.mark.parametrize("name", NEAR)
def test_near_is_not_near_enough(name: str) -> None:
    dense, tensors = NEAR[name]()
    assert recovered(dense, tensors) is None


@pytest.mark.parametrize("name", ["an entry off", "an entry a little off", "an entry too many", "one entry off"])
def test_near_in_bfloat16(name: str) -> None:
    dense, tensors = NEAR[name]()
    assert recovered(dense.bfloat16(), tensors) is None
