"""Random shapes, widths, groups, zero points, dtypes and ways to write it: recognized for what they are, and equal."""

from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.spellings import BF16, F16, F32, Written, linear, nibbles, words
from torch import Tensor

import qcompile
from qcompile.meaning import sqnr_db

STORED = {"bytes": lambda codes: codes, "nibbles": nibbles, "words": words}
PRODUCTS = {
    "linear": linear,
    "matmul": lambda x, w: x @ w.T,
    "einsum": lambda x, w: torch.einsum("bk,nk->bn", x, w),
    "left": lambda x, w: (w @ x.T).T,
}


class Case(NamedTuple):
    n: int
    k: int
    group: int
    bits: int
    symmetric: bool
    dtype: torch.dtype
    stored: str
    product: str
    after: bool  # the scale stands behind the product
    transposed: bool  # the weight is stored [K, N]
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bits = draw(st.sampled_from((4, 4, 8)))
    stored = draw(st.sampled_from(("bytes", "nibbles", "words"))) if bits == 4 else "bytes"
    unit = {"bytes": 1, "nibbles": 2, "words": 8}[stored]
    group = unit * draw(st.integers(max(1, 8 // unit), max(2, 48 // unit)))
    k = group * draw(st.integers(1, 4))
    symmetric = draw(st.booleans())
    after = symmetric and k == group and draw(st.booleans())
    transposed = stored == "bytes" and draw(st.booleans())
    return Case(
        draw(st.integers(1, 40)),
        k,
        group,
        bits,
        symmetric,
        draw(st.sampled_from((BF16, F16, F32))),
        stored,
        draw(st.sampled_from(sorted(PRODUCTS))),
        after,
        transposed,
        draw(st.integers(0, 1 << 20)),
    )


def written(case: Case) -> Written:
    """A model of this case. Codes are stored unsigned; symmetric ones lie half way below."""
    torch.manual_seed(case.seed)
    most, half = (1 << case.bits) - 1, 1 << (case.bits - 1)
    codes = torch.randint(0, most + 1, (case.n, case.k), dtype=torch.uint8)
    # Every group spans all codes, as quantizers make them; otherwise fewer bits may be enough, and be found.
    spread = codes.view(case.n, -1, case.group)
    spread[..., 0], spread[..., -1] = 0, most
    groups = case.k // case.group
    tensors = {
        "q": STORED[case.stored](codes.T.contiguous() if case.transposed else codes),
        "s": (torch.rand(case.n, groups) * 0.01 + 0.001).to(case.dtype),
    }
    if not case.symmetric:
        tensors["z"] = torch.randint(1, most, (case.n, groups), dtype=torch.uint8)
        tensors["z"][0, 0] = 3  # if all were half way, the weight would be symmetric, and be found to be

    def unpacked(m: Any) -> Tensor:
        if case.stored == "nibbles":
            return torch.stack((m.q & 15, m.q >> 4), dim=-1).flatten(1)
        if case.stored == "words":
            return ((m.q.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15).flatten(1)
        return m.q.T if case.transposed else m.q  # type: ignore[no-any-return]

    def forward(m: Any, x: Tensor) -> Tensor:
        values = unpacked(m).to(case.dtype).reshape(case.n, -1, case.group)
        values = values - (half if case.symmetric else m.z.to(case.dtype)[:, :, None])
        if not case.after:
            values = values * m.s[:, :, None]
        y: Tensor = PRODUCTS[case.product](x, values.reshape(case.n, case.k))
        return y * m.s.flatten() if case.after else y

    return Written(forward, tensors)


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_weight(case: Case) -> None:
    torch._dynamo.reset()
    model = written(case)
    x = torch.randn(64, case.k).to(case.dtype)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "kernels": ["reference"]})(x)
    (row,) = qcompile.report().sites
    assert row.declined == ""
    assert (row.n, row.k, row.bits, row.symmetric) == (case.n, case.k, case.bits, case.symmetric)
    assert row.group == case.group
    assert row.kernel == "reference.quantized_linear"
    assert sqnr_db(want, got) >= 40
