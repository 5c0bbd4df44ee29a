"""A weight of 8 bits with zero points is kept as near to them as 8 bits allow, so that float32 keeps its digits, and stays the same."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layer_stacks import compiled
from torch import Tensor, nn

import qcompile
from qcompile.formats.proposal import Proposal
from qcompile.meaning import Operands, dequantize
from qcompile.recognize.narrowing import Extent, centred
from qcompile.reporting.report import clear

GROUP = 4


def reading(codes: Tensor, zeros: Tensor) -> Proposal:
    scales = torch.full(zeros.shape, 0.5)
    return Proposal("test", 8, GROUP, lambda _: Operands(codes, scales, zeros), symmetric=False)


def moved(codes: Tensor, zeros: Tensor) -> tuple[Operands, Proposal]:
    before = reading(codes, zeros)
    extent = Extent(before)
    extent.add(before.unpack([]))
    assert extent.centred_range is not None
    after = centred(before, extent.centred_range)
    return after.unpack([]), after


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-128, 127), min_size=10, max_size=10), st.booleans())
def test_it_is_the_same_weight(numbers: list[int], narrow: bool) -> None:
    codes = torch.tensor(numbers[:8], dtype=torch.int8).reshape(1, 8)
    zeros = torch.tensor(numbers[8:], dtype=torch.int8).reshape(1, 2)
    if narrow:  # near to the zero points
        codes = (zeros.repeat_interleave(GROUP, 1).int() + codes.int() % 8).clamp(-128, 127).to(torch.int8)
    before = reading(codes, zeros).unpack([])
    after, proposal = moved(codes, zeros)
    assert after.codes.dtype is torch.int8 and (after.zeros is None) == proposal.symmetric
    assert torch.equal(
        dequantize(before.codes, before.scales, before.zeros, GROUP), dequantize(after.codes, after.scales, after.zeros, GROUP)
    )
    points = torch.zeros(1, 2) if after.zeros is None else after.zeros
    assert bool((points.abs() <= zeros.int().abs()).all()), "never farther from 0 than before"
    if narrow:
        assert proposal.symmetric


def test_differences_of_more_than_8_bits_keep_a_zero_point() -> None:
    codes, zeros = torch.tensor([[-128, 127, 0, 0, 90, 91, 90, 90]], dtype=torch.int8), torch.tensor([[-100, 90]], dtype=torch.int8)
    after, proposal = moved(codes, zeros)
    assert not proposal.symmetric and after.zeros is not None
    assert after.zeros.tolist() == [[-100, 0]] and after.codes.tolist() == [[-128, 127, 0, 0, 0, 1, 0, 0]]


class Near(nn.Module):
    """Bytes one step above their zero point, which is far from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("q", torch.full((64, 48), 14, dtype=torch.uint8))
        self.q[0] = torch.arange(48)
        self.register_buffer("z", torch.full((64, 1), 13.0))
        self.register_buffer("s", torch.full((64, 1), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x @ ((self.q.float() - self.z) * self.s).t()


def test_a_row_near_a_large_zero_point_keeps_the_digits_of_float32() -> None:
    model, x = Near(), torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    clear()
    with torch.no_grad():
        got, exact = compiled(model)(x).double(), x.double() @ ((model.q.double() - 13) * model.s.double()).t()
    (site,) = qcompile.report().sites
    assert site.kernel is not None and site.symmetric
    assert float((got - exact)[:, 1:].abs().max()) < 4e-7  # 4e-6 when the codes were kept as 14 - 128 and 13 - 128
