"""Scales that a graph keeps in 8 bits for each block stay so in the packed weight, with their second level; others stay wide."""

from typing import Any

import pytest
import torch
from support.block_scale_spellings import BLOCKS, ONE_LEVEL, Blocks, K, N, tensors
from support.spellings import BF16, F32, Written
from torch import Tensor

import qcompile
from qcompile.reporting.rows import SiteReport

pytestmark = pytest.mark.usefixtures("fresh_compiler")

DTYPES = pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
_HEAD, _CODES = 128, N * K // 2


def served(spelling: Blocks, dtype: torch.dtype) -> tuple[SiteReport, Written, Any]:
    model = Written(spelling, tensors(spelling.group))
    compiled: Any = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})
    with torch.no_grad():
        x = torch.randn(5, K, generator=torch.Generator().manual_seed(1)).to(dtype)
        want, got = model(x).float(), compiled(x).float()
    assert float((want - got).abs().max()) <= float(want.abs().max()) * (1e-5 if dtype is F32 else 0.02)
    (row,) = qcompile.report().sites
    assert (row.kernel, row.group, row.codebook) == ("native.book4", spelling.group, "e2m1")
    return row, model, compiled


def exactly(spelling: Blocks, model: Written) -> Tensor:
    """The weight by its formula in float64."""
    twin = Written(spelling, {name: item.clone() for name, item in model.named_buffers()})
    for name in ("g", "inverse", "outer", "table"):
        setattr(twin, name, getattr(twin, name).double())
    return spelling.weight(twin)


@DTYPES
@pytest.mark.parametrize("name", BLOCKS)
def test_scales_of_8_bits_stay_8_bits(name: str, dtype: torch.dtype) -> None:
    spelling = BLOCKS[name]
    row, model, compiled = served(spelling, dtype)
    assert row.bytes_after == _HEAD + _CODES + N * K // spelling.group + (4 * N if spelling.outer else 0)
    if dtype is F32:
        with torch.no_grad():
            weight, exact = compiled(torch.eye(K)).t().double(), exactly(spelling, model)
        assert bool(((weight - exact).abs() <= exact.abs() * 1e-6).all())


@DTYPES
@pytest.mark.parametrize("name", ONE_LEVEL)
def test_others_stay_as_wide_as_they_are(name: str, dtype: torch.dtype) -> None:
    spelling, bytes_each = ONE_LEVEL[name]
    row, *_ = served(spelling, dtype)
    assert row.bytes_after == _HEAD + _CODES + bytes_each * N * K // spelling.group
