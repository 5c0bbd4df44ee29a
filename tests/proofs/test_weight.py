"""When a computed weight counts as the one that was read: tables of what is accepted and what is off by one code or by less."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompile.meaning import Operands, dequantize
from qcompile.proofs.weight import disagreement, in_range, inexact, is_fixed, random_leaves, rounded_to, tolerance

N, K, G = 8, 64, 16
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EVERY_DTYPE = pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)


def operands(bits: int = 4, zeros: bool = False, perm: bool = False, size: float = 0.01) -> Operands:
    generator = torch.Generator().manual_seed(bits)
    low = 0 if zeros else -(1 << (bits - 1))
    codes = torch.randint(low, low + (1 << bits), (N, K), generator=generator).to(torch.int8 if low else torch.uint8)
    scales = (torch.rand(N, K // G, generator=generator) + 0.5) * size
    points = torch.randint(1, 1 << bits, (N, K // G), generator=generator).to(torch.uint8) if zeros else None
    return Operands(codes, scales, points, torch.randperm(K, generator=generator) if perm else None)


def dense_of(given: Operands, dtype: torch.dtype) -> Tensor:
    """The weight, in the order of the input, rounded once."""
    weight = dequantize(given.codes, given.scales, given.zeros, G, "")
    if given.perm is not None:
        weight = weight[:, torch.argsort(given.perm)]
    return weight.to(dtype)


@pytest.mark.parametrize("perm", [False, True], ids=("in order", "act-order"))
@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, False)])
@EVERY_DTYPE
def test_the_weight_itself_is_accepted(dtype: torch.dtype, bits: int, zeros: bool, perm: bool) -> None:
    given = operands(bits, zeros, perm)
    assert disagreement(dense_of(given, dtype), given, G, "") is None


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (3, 17), (N - 1, K - 1)])
@pytest.mark.parametrize("zeros", [False, True])
@EVERY_DTYPE
def test_one_code_off_at_one_place_is_refused(dtype: torch.dtype, zeros: bool, place: tuple[int, int], adds: bool) -> None:
    given = operands(4, zeros)
    dense = dense_of(given, F32)
    step = given.scales[place[0], place[1] // G]
    for off in (step, -step):
        wrong = dense.clone()
        wrong[place] += off
        said = disagreement(wrong.to(dtype), given, G, "", adds=adds)
        assert said is not None and f"weight [{place[0]}, {place[1]}]" in said


@pytest.mark.parametrize("share", [0.25, -0.25, 0.5])
@pytest.mark.parametrize("adds", [False, True])
def test_a_quarter_of_a_code_is_refused(share: float, adds: bool) -> None:
    """Codes of 4 bits in bfloat16: a code step is 16 roundings of the largest weight."""
    given = operands()
    dense = dense_of(given, F32)
    dense[2, 5] += given.scales[2, 0] * share
    assert disagreement(dense.to(BF16), given, G, "", adds=adds) is not None


@pytest.mark.parametrize(("roundings", "accepted"), [(0.9, True), (2.0, True), (3.5, False), (16.0, False)])
@pytest.mark.parametrize(("dtype", "unit"), [(BF16, 2.0**-8), (F16, 2.0**-11)], ids=str)
def test_some_roundings_are_allowed_and_no_more(dtype: torch.dtype, unit: float, roundings: float, accepted: bool) -> None:
    given = Operands(torch.full((1, G), 8, dtype=torch.int8), torch.ones(1, 1), None, None)
    dense = torch.full((1, G), 8.0, dtype=dtype)
    dense[0, 3] *= 1 + roundings * unit
    assert (disagreement(dense, given, G, "") is None) == accepted


def test_small_differences_of_large_terms_are_allowed_to_code_that_adds() -> None:
    """w * s - z * s leaves the rounding of both terms in the difference; code that does not add has no such excuse."""
    codes = torch.full((1, G), 120, dtype=torch.uint8)
    codes[0, 0] = 0
    given = Operands(codes, torch.full((1, 1), 0.25), torch.full((1, 1), 119, dtype=torch.uint8), None)
    dense = dense_of(given, F32)
    dense[0, 5] += 0.25 * 0.15  # of a step; the group's largest weight is 119 steps
    assert disagreement(dense.to(BF16), given, G, "") is not None
    assert disagreement(dense.to(BF16), given, G, "", adds=True) is None
    dense[0, 5] += 0.25 * 0.15
    assert disagreement(dense.to(BF16), given, G, "", adds=True) is not None


def test_equal_terms_give_exactly_zero() -> None:
    codes = torch.full((1, G), 9, dtype=torch.uint8)
    codes[0, 0] = 15
    given = Operands(codes, torch.ones(1, 1), torch.full((1, 1), 9, dtype=torch.uint8), None)
    dense = dense_of(given, F32)
    dense[0, 7] = 0.01
    assert disagreement(dense, given, G, "", adds=True) is not None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@EVERY_DTYPE
def test_what_is_not_finite_is_refused(dtype: torch.dtype, value: float) -> None:
    given = operands()
    dense = dense_of(given, dtype)
    dense[1, 1] = value
    assert disagreement(dense, given, G, "") is not None
    assert inexact(dense.to(F64), given, G, "") is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d, o: (d[:, :-1], o, G), "shape [8, 64] instead of [8, 63]"),
        (lambda d, o: (d.flatten(), o, G), "instead of [512]"),
        (lambda d, o: (d, o, 24), "scales [8, 4] instead of [8, 3]"),
        (lambda d, o: (d, o, 0), "a group of 0 values"),
        (lambda d, o: (d, o, 32), "scales [8, 4] instead of [8, 2]"),
        (lambda d, o: (d, o._replace(zeros=torch.ones(8, 1, dtype=torch.uint8)), G), "zeros [8, 1] instead of [8, 4]"),
    ],
)
def test_other_shapes_are_refused(change: Callable[..., tuple[Tensor, Operands, int]], reason: str) -> None:
    given = operands()
    dense, other, group = change(dense_of(given, F32), given)
    said = disagreement(dense, other, group, "")
    assert said is not None and reason in said


def test_another_order_is_refused() -> None:
    given = operands(perm=True)
    assert disagreement(dense_of(given, BF16), given._replace(perm=None), G, "") is not None


@pytest.mark.parametrize(("share", "accepted"), [(0.0, True), (2.0**-22, True), (2.0**-18, False), (2.0**-9, False)])
def test_without_rounding_the_weight_has_to_be_exact(share: float, accepted: bool) -> None:
    """An offset that bfloat16 hides shows in what the code computes without rounding."""
    given = operands()
    given.codes[4, 4] = 5
    exact = dense_of(given, F64)
    exact[4, 4] *= 1 + share
    assert (inexact(exact, given, G, "") is None) == accepted


def test_the_dtype_that_was_rounded_to_is_seen_in_the_numbers() -> None:
    weight = torch.tensor([[0.1, 1 / 3, 7.7]])
    assert rounded_to(weight.to(BF16)) is BF16
    assert rounded_to(weight.to(BF16).float()) is rounded_to(weight.to(BF16).double()) is BF16
    assert rounded_to(weight.to(F16).float()) is F16
    assert rounded_to(weight) is F32


def test_tolerance_is_never_more_than_a_fifth_of_a_code_or_the_roundings_of_the_weight() -> None:
    weights = torch.tensor([[[0.0, 1.0, 100.0]]])
    found = tolerance(weights, 0.5, BF16)
    assert found[0, 0, 0] == pytest.approx(0.1)  # a fifth of the step
    assert found[0, 0, 2] == pytest.approx(100 * 2.5 / 256)  # roundings of the weight itself
    assert tolerance(weights, 1e9, BF16)[0, 0, 0] == pytest.approx(100 * 4 / 256)  # a scale that is far too large excuses nothing


@pytest.mark.parametrize(
    ("codes", "bits", "signed", "fits"),
    [
        ([-8, 7], 4, True, True),
        ([-9, 0], 4, True, False),
        ([0, 8], 4, True, False),
        ([0, 15], 4, False, True),
        ([0, 16], 4, False, False),
        ([-1, 3], 4, False, False),
        ([-128, 127], 8, True, True),
        ([], 4, True, True),
    ],
)
def test_codes_that_fit(codes: list[int], bits: int, signed: bool, fits: bool) -> None:
    assert in_range(torch.tensor(codes, dtype=torch.int16), bits, signed) is fits


def test_random_leaves_have_the_same_kind_and_other_contents() -> None:
    words = torch.zeros(6, 32, dtype=torch.int32)
    scales = torch.ones(6, 4, dtype=BF16)
    order, places = torch.arange(40, dtype=torch.int32) % 5, torch.arange(7)
    float8 = torch.ones(6, 4).to(torch.float8_e4m3fn)
    leaves = [words, scales, order, places, float8, torch.tensor(3, dtype=torch.int32)]
    made = random_leaves(leaves, 40, torch.Generator().manual_seed(0))
    assert [(leaf.shape, leaf.dtype) for leaf in made] == [(leaf.shape, leaf.dtype) for leaf in leaves]
    assert made[0].view(torch.uint8).unique().numel() > 200
    assert bool((made[1] < 0).any()) and bool((made[1] > 0).any()) and bool(torch.isfinite(made[1]).all())
    assert not torch.equal(made[2], order) and torch.equal(made[2].sort()[0], order.sort()[0])
    assert torch.equal(made[3], places) and bool((made[4].float() > 0).all()) and int(made[5]) == 3
    assert [is_fixed(leaf) for leaf in leaves] == [False, False, False, True, False, True]
    again = random_leaves(leaves, 40, torch.Generator().manual_seed(0))
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(made[:5], again[:5], strict=True))
