"""The formula of a weight: over all codes, zero points, offsets and levels, against a value at a time; and what contradicts it."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planes_weights import LEVELS, Kind, made, parts
from torch import Tensor

from qcompile.errors import WeightError
from qcompile.kernel import inner_bits
from qcompile.meaning import QuantizedWeight, dense_of, is_signed

KINDS = st.builds(
    Kind, st.integers(1, 8), st.sampled_from(sorted(LEVELS)), st.booleans(), st.booleans(), st.sampled_from((0, 6, 12))
)


@settings(max_examples=60, deadline=None)
@given(KINDS, st.integers(1, 5), st.integers(1, 20))
def test_every_value_is_the_formulas(kind: Kind, n: int, k: int) -> None:
    """Groups of 3; exact fractions, rounded once more than float32 rounds."""
    kind = replace(kind, outer_group=kind.outer_group if kind.outer_group < k else 0)
    w = made(n, k, min(3, k), kind)
    w.check()
    exact, sizes = parts(w)
    terms = exact.abs() + (0 if w.offsets is None else 2 * _expanded_offsets(w))
    assert bool(((w.dequantize().double() - exact).abs() <= terms * 2.0**-21).all())
    row, column = n - 1, k - 1
    g, h = column // w.group, column // w.outer_group if w.outer_group else 0

    def number(tensor: Tensor | None, at: int, otherwise: int) -> Fraction:
        return Fraction(otherwise) if tensor is None else Fraction(float(tensor[row, at]))

    value = int(w.codes[row, column]) - number(w.zeros, g, 0)
    formula = value * number(w.scales, g, 1) * number(w.outer, h, 1) + number(w.offsets, g, 0) * number(w.outer_offset, h, 1)
    assert abs(float(formula) - float(exact[row, column])) <= 1e-12 * float(sizes[row, column])


def _expanded_offsets(w: QuantizedWeight) -> Tensor:
    return parts(replace(w, scales=w.scales * 0))[0].abs()


@settings(max_examples=60, deadline=None)
@given(KINDS, st.integers(1, 5), st.integers(1, 20))
def test_rows_of_a_weight_are_its_rows(kind: Kind, n: int, k: int) -> None:
    kind = replace(kind, outer_group=kind.outer_group if kind.outer_group < k else 0)
    w = made(n, k, min(3, k), kind)
    part = slice(n // 2, n)
    rows = dense_of(w.operands.rows(part), w.group, outer_group=w.outer_group)
    assert torch.equal(rows, w.dequantize()[part])


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("zeros", [False, True], ids=["no zero points", "zero points"])
def test_signed_codes_with_offsets_are_shifted(bits: int, zeros: bool) -> None:
    w = made(4, 12, 3, Kind(bits, "f32", zeros, True))
    half = 1 << (bits - 1)
    moved = replace(w, codes=w.codes - half, zeros=None if w.zeros is None else w.zeros - half)
    moved.check()
    again = moved.normalized()
    assert int(again.codes.min()) >= 0 and again.zeros is not None
    points = torch.full_like(w.scales, half, dtype=torch.int8) if w.zeros is None else w.zeros
    assert torch.equal(again.codes, w.codes) and torch.equal(again.zeros, points)
    assert torch.equal(again.dequantize(), moved.dequantize())


def test_which_codes_are_signed() -> None:
    assert is_signed(3, zeros=False, offsets=False, codebook=False) and is_signed(8, zeros=True, offsets=True, codebook=False)
    assert not any(is_signed(4, zeros=z, offsets=not z, codebook=False) for z in (False, True))
    assert not is_signed(4, zeros=False, offsets=False, codebook=True)


def test_bits_of_integer_levels() -> None:
    """4, 6 or 8, by dtype and content."""
    for low, high, signed, unsigned in (
        (0, 15, 6, 4),
        (0, 16, 6, 6),
        (0, 63, 8, 6),
        (0, 64, 8, 8),
        (-8, 7, 4, 0),
        (-9, 0, 6, 0),
        (-33, 1, 8, 0),
    ):
        values = torch.tensor([[low, high]])
        assert inner_bits(values.to(torch.int8)) == signed
        if low >= 0:
            assert inner_bits(values.to(torch.uint8), None) == unsigned
    assert inner_bits(torch.ones(1, 1), None) == 0


TWO = made(4, 24, 3, Kind(4, "u6 fp16", offsets=True, outer_group=12))
ONE = made(4, 24, 3, Kind(4, "fp16", offsets=True))
WRONG: dict[str, tuple[Callable[[], QuantizedWeight], str]] = {
    "no bits": (lambda: replace(ONE, bits=0), "bits.*1 to 8"),
    "too few offsets": (lambda: replace(ONE, offsets=torch.ones(4, 3)), r"offsets.*\[4, 8\]"),
    "offsets for every output": (lambda: replace(ONE, offsets=torch.ones(4)), r"offsets.*\[4, 8\]"),
    "integer offsets alone": (lambda: replace(ONE, offsets=TWO.offsets), "offsets.*inner of two levels"),
    "integer scales alone": (lambda: replace(ONE, scales=TWO.scales), "scales.*inner of two levels"),
    "int16 scales": (lambda: replace(TWO, scales=TWO.scales.to(torch.int16)), "scales.*int16"),
    "float64 offsets": (lambda: replace(ONE, offsets=torch.ones(4, 8).double()), "offsets.*float64"),
    "offsets with NaN": (lambda: replace(ONE, offsets=torch.full((4, 8), torch.nan)), "offsets.*NaN or infinity"),
    "outer scales with infinity": (lambda: replace(TWO, outer=torch.full((4, 2), torch.inf)), "outer.*NaN or infinity"),
    "outer offsets with NaN": (lambda: replace(TWO, outer_offset=torch.full((4, 2), torch.nan)), "outer_offset.*NaN or infinity"),
    "outer offsets without offsets": (lambda: replace(TWO, offsets=None), "outer_offset.*without offsets"),
    "too many outer scales": (lambda: replace(TWO, outer=torch.ones(4, 3)), r"outer.*\[4, 2\]"),
    "an outer scale for each output": (lambda: replace(TWO, outer=torch.ones(4, 1)), r"outer.*\[4, 2\]"),
    "integer outer scales": (lambda: replace(TWO, outer=torch.ones(4, 2, dtype=torch.int8)), "outer.*int8"),
    "an uneven outer group": (lambda: replace(TWO, outer_group=10), "outer_group.*multiple of group=3"),
    "a negative outer group": (lambda: replace(TWO, outer_group=-12), "outer_group.*multiple of group=3"),
    "offsets and a code book": (lambda: replace(ONE, codebook="nf4"), "offsets.*code book"),
    "codes of another width": (lambda: replace(ONE, bits=3), "codes.*0 .. 7"),
    "codes of both signs": (lambda: replace(ONE, codes=ONE.codes - 3), r"codes.*-8 \.\. 7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions_are_errors(name: str) -> None:
    make, message = WRONG[name]
    TWO.check()
    ONE.check()
    with pytest.raises(WeightError, match=f"(?s){message}"):
        make().check()
