"""Corrupt, odd and unusual weights: refused with a reason or right, and never a NaN that the eager model would not give."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.packed_linears import packed_linear
from support.spellings import BF16, F16, F32, G, K, N, Written, int4, int8, linear, nibbles, scale, uint4
from torch import Tensor, nn

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.reporting.rows import SiteReport

X = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(BF16)
Forward = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def run(model: Any, x: Tensor = X, **options: Any) -> tuple[SiteReport, ...]:
    """Compile and compare with eager: NaN and infinity in the same places, everything else within 40 dB."""
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", **options})(x)
    assert got.dtype is want.dtype and got.shape == want.shape
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(got), special(want))
    usual = torch.isfinite(want)
    assert not usual.any() or sqnr_db(want[usual], got[usual]) >= 40
    return qcompile.report().sites


def before(m: Any, x: Tensor) -> Tensor:
    return linear(x, m.q * m.s)


def after(m: Any, x: Tensor) -> Tensor:
    return linear(x, m.q.to(x.dtype)) * m.s.flatten()


def divided(m: Any, x: Tensor) -> Tensor:
    return linear(x, m.q.to(x.dtype)) / m.s.flatten()


def grouped(m: Any, x: Tensor) -> Tensor:
    return linear(x, (m.q.view(N, -1, G) * m.s[:, :, None]).view(N, K))


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"kernels": ["reference"]}, {"verify": "off"})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("forward", [before, after, divided])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -0.5])
def test_strange_scales(forward: Forward, bad: float, options: dict[str, Any]) -> None:
    s = scale(N, 1)
    s[5] = bad
    (row,) = run(Written(forward, {"q": int4(), "s": s}), **options)
    if not math.isfinite(bad) and not (forward is divided and math.isinf(bad)):
        assert row.kernel is None and ("NaN or infinity" in row.declined or "NaN or infinite" in row.declined)
    if bad == 0.0 and forward is divided:
        assert "NaN or infinite" in row.declined


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("forward", [before, after])
def test_all_scales_zero_and_all_codes_zero(forward: Forward, options: dict[str, Any]) -> None:
    run(Written(forward, {"q": int4(), "s": torch.zeros(N, 1, dtype=BF16)}), **options)
    torch._dynamo.reset()
    run(Written(forward, {"q": torch.zeros(N, K, dtype=torch.int8), "s": scale(N, 1)}), **options)


@pytest.mark.parametrize("forward", [before, after])
@pytest.mark.parametrize("size", [1e-7, 1e-4, 2000.0])
def test_scales_at_the_ends_of_float16(forward: Forward, size: float) -> None:
    s = torch.full((N, 1), size, dtype=F16)
    run(Written(forward, {"q": int8(), "s": s}), X.to(F16))


def test_scales_at_the_ends_of_float32() -> None:
    for size in (1e-38, 1e-30, 1e30):
        torch._dynamo.reset()
        run(Written(before, {"q": int4(), "s": torch.full((N, 1), size)}), X.float())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bad", [-100, -1, 16, 17, 100])
def test_zero_points_out_of_range(bad: int, options: dict[str, Any]) -> None:
    z = torch.randint(0, 16, (N, K // G), dtype=torch.int8)
    z[3, 1] = bad
    tensors = {"p": nibbles(uint4()), "z": z, "s": scale(N, K // G, dtype=F32)}

    def forward(m: Any, x: Tensor) -> Tensor:
        codes = torch.stack((m.p & 15, m.p >> 4), -1).view(N, -1, G).to(F32)
        return linear(x, ((codes - m.z[:, :, None]) * m.s[:, :, None]).view(N, K).to(x.dtype))

    run(Written(forward, tensors), **options)


@pytest.mark.parametrize(("n", "k"), [(1, 33), (33, 1), (1, 1), (7, 33), (48, 65), (1, 64), (16, 40)])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("forward", [before, after])
def test_odd_shapes(n: int, k: int, dtype: torch.dtype, forward: Forward) -> None:
    q = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    (row,) = run(Written(forward, {"q": q, "s": scale(n, 1, dtype=dtype)}), torch.randn(5, k).to(dtype))
    assert (row.n, row.k, row.declined) == (n, k, "")


@pytest.mark.parametrize("x", [torch.randn(33), torch.randn(1, 33), torch.randn(2, 1, 33), torch.randn(1, 1, 1, 33)])
def test_odd_inputs(x: Tensor) -> None:
    run(Written(before, {"q": torch.randint(-8, 8, (1, 33), dtype=torch.int8), "s": scale(1, 1, dtype=F32)}), x)


def test_a_group_that_does_not_divide_k() -> None:
    """K = 65 in groups of 32: the last group has one column."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return linear(x, m.q * m.s.repeat_interleave(32, dim=1)[:, :65])

    (row,) = run(
        Written(forward, {"q": torch.randint(-8, 8, (N, 65), dtype=torch.int8), "s": scale(N, 3)}), torch.randn(3, 65).to(BF16)
    )
    assert row.kernel and (row.bits, row.group) == (4, 32)


def test_groups_of_different_sizes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return linear(x, m.q * m.s[:, m.g])

    g = torch.tensor([0] * 20 + [1] * 44)
    (row,) = run(Written(forward, {"q": int8(), "s": scale(N, 2), "g": g}))
    assert row.kernel is None and row.declined


def test_double_precision() -> None:
    x = X.double()
    (row,) = run(Written(before, {"q": int4(), "s": scale(N, 1, dtype=torch.float64)}), x)
    assert all(row.reasons.values()) or row.declined


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Written(before, {"q": int4(), "s": scale(N, 1)})
        want = model(X)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager"})(X)
        assert torch.equal(want, got)
        model.q.add_(1)  # type: ignore[operator]
        assert torch.equal(model(X), torch.compile(model, backend="qcompile", options={"rest": "eager"})(X))
    (row,) = qcompile.report().sites
    assert "inference_mode" in row.declined


def test_other_weights_beside_ones_made_in_inference_mode() -> None:
    with torch.inference_mode():
        s = scale(N, 1)
    (row,) = run(Written(before, {"q": int4(), "s": s}))
    assert "inference_mode" in row.declined


def test_outputs_that_are_weights() -> None:
    """The graph returns a constant, a view of one, and a changed input."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = packed_linear(N, K)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.linear(x)
            return y, self.linear.weight_scale, self.linear.weight_packed.T, x.view(-1), y.T  # type: ignore[operator,return-value,union-attr]

    model = Odd()
    with torch.no_grad():
        want = model(X)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "kernels": ["reference"]})(X)
    assert sqnr_db(want[0], got[0]) >= 40
    assert all(torch.equal(a, b) for a, b in zip(want[1:4], got[1:4], strict=True))
    assert got[4].stride() == want[4].stride()


def test_an_input_that_the_graph_changes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        y = before(m, x)
        x.add_(1)
        return y

    model = Written(forward, {"q": int4(), "s": scale(N, 1)})
    one, two = X.clone(), X.clone()
    with torch.no_grad():
        want = model(one)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "kernels": ["reference"]})(two)
    assert sqnr_db(want, got) >= 40 and torch.equal(one, two)


def test_a_weight_used_in_two_ways() -> None:
    """As a linear and as an embedding."""

    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.q * m.s
        return linear(x, weight) + weight[:3, :N]

    rows = run(Written(forward, {"q": int4(), "s": scale(N, 1)}), kernels=["reference"])
    assert [row.kernel for row in rows] == ["reference.quantized_linear"]


def test_a_product_used_twice() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = linear(x, m.q.to(BF16))
        return y * m.s.flatten() + y.sum()

    run(Written(forward, {"q": int4(), "s": scale(N, 1)}), kernels=["reference"])


def test_two_layers_in_a_row_are_not_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return linear(linear(x, m.q.to(BF16)), m.p.to(BF16)) * m.s.flatten()

    rows = run(Written(forward, {"q": int4(K, K), "p": int4(), "s": scale(N, 1)}), kernels=["reference"])
    assert [row.kernel for row in rows] == ["reference.quantized_linear"] * 2


def test_nonsense_in_the_input_stays_where_it_is() -> None:
    """A row of x that holds NaN or infinity spoils its own result only."""
    x = X.clone()
    x[1, 7] = math.nan
    x[2, 9] = math.inf
    model = Written(before, {"q": int4(), "s": scale(N, 1)})
    with torch.no_grad():
        want = model(x)
        for options in ({"kernels": ["reference"]}, {"kernels": ["native"]}):
            torch._dynamo.reset()
            got = torch.compile(model, backend="qcompile", options={"rest": "eager", **options})(x)
            assert sqnr_db(want[0], got[0]) >= 40
            assert not torch.isfinite(got[1:]).any()


def test_no_warning_of_ours_for_ordinary_models() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(Written(before, {"q": int4(), "s": scale(N, 1)}))
    assert [str(item.message) for item in seen if "qcompile" in str(item.message)] == []
