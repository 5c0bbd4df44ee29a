"""The table of spellings: each is recognized for what it is, and the rewritten model gives the numbers of the eager one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.float8_spellings import FLOAT8
from support.offset_spellings import LOOK_ALIKES, WITH_OFFSETS
from support.scale_spellings import BY_VALUE
from support.spellings import BF16, EIGHT, F16, F32, MORE, SPELLINGS, K, M, N, Spelling, Written, int4, int8, scale
from torch import Tensor, nn

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.reporting.rows import SiteReport

REFERENCE = {"rest": "eager", "kernels": ["reference"]}
LEAST_DB = 40.0
linear = nn.functional.linear


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def run(model: Callable[..., Tensor], x: Tensor, **options: Any) -> tuple[Tensor, tuple[SiteReport, ...]]:
    """The compiled model's result and the report's rows; the eager result must be at most 40 dB away."""
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options=options)(x)
    assert got.dtype is want.dtype and got.shape == want.shape
    assert sqnr_db(want, got) >= LEAST_DB
    return got, qcompile.report().sites


def names(table: tuple[Spelling, ...]) -> dict[str, Any]:
    return {"argvalues": table, "ids": [spelling.name for spelling in table]}


def recognized(row: SiteReport) -> tuple[int, int, bool, bool, int, int]:
    return row.bits, row.group, row.symmetric, row.act_order, row.n, row.k


@pytest.mark.parametrize("spelling", **names((*SPELLINGS, *BY_VALUE, *FLOAT8, *WITH_OFFSETS)))
def test_is_recognized_and_right(spelling: Spelling) -> None:
    model = spelling.model()
    _, rows = run(model, spelling.x(), **REFERENCE)
    assert [row.declined for row in rows] == [""]
    n = model.s.shape[-1] if "N == K" in spelling.name else N
    assert recognized(rows[0]) == (spelling.bits, spelling.group, spelling.symmetric, spelling.act_order, n, spelling.shape[-1])
    assert rows[0].codebook == spelling.codebook
    assert (rows[0].offset, rows[0].two_level) == (spelling.offset, spelling.two_level)
    assert rows[0].kernel == "reference.quantized_linear"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_only_looks_like_an_offset_is_declined(name: str, dtype: torch.dtype) -> None:
    forward, tensors = LOOK_ALIKES[name]
    spelling = Spelling(name, forward, tensors, dtype=dtype)
    model, x = spelling.model(), spelling.x()
    got, rows = run(model, x, **REFERENCE)
    assert [row.kernel for row in rows] == [None] and rows[0].declined
    with torch.no_grad():
        assert torch.equal(got, model(x))


@pytest.mark.parametrize("spelling", **names((*SPELLINGS, *WITH_OFFSETS)))
def test_is_right_with_default_kernels(spelling: Spelling) -> None:
    run(spelling.model(), spelling.x(), rest="eager")


@pytest.mark.parametrize("spelling", **names(FLOAT8))
def test_fp8_runs_packed(spelling: Spelling) -> None:
    _, rows = run(spelling.model(), spelling.x(), rest="eager")
    assert rows[0].kernel == "native.fp8"
    assert rows[0].bytes_after <= 2 * N * spelling.shape[-1]


@pytest.mark.parametrize(
    "spelling", **names((*EIGHT, *(row for row in MORE if "nibbles by unb" in row.name or "left of" in row.name)))
)
def test_is_recognized_under_inductor(spelling: Spelling) -> None:
    _, rows = run(spelling.model(), spelling.x(), kernels=["reference"])
    assert [(row.declined, *recognized(row)[:2]) for row in rows] == [("", spelling.bits, spelling.group)]


def test_the_table_holds_what_the_style_guide_asks_for() -> None:
    assert len(EIGHT) == 8
    assert len(MORE) >= 14
    assert len({spelling.name for spelling in SPELLINGS}) == len(SPELLINGS)


def test_weights_in_a_closure() -> None:
    torch.manual_seed(0)
    w, s = int8(), scale(N)
    _, rows = run(lambda x: linear(x, w.to(BF16)) * s, torch.randn(M, K, dtype=BF16), **REFERENCE)
    assert [(row.bits, row.declined) for row in rows] == [(8, "")]


GLOBAL_W = torch.arange(-128, 128, dtype=torch.int16).repeat(N * K // 256).reshape(N, K).to(torch.int8)
GLOBAL_S = torch.linspace(0.001, 0.01, N, dtype=F32)


def reads_globals(x: Tensor) -> Tensor:
    return linear(x, GLOBAL_W.to(F32)) * GLOBAL_S


def test_weights_in_globals() -> None:
    _, rows = run(reads_globals, torch.randn(M, K), **REFERENCE)
    assert [(row.module, row.bits, row.declined) for row in rows] == [("GLOBAL_W", 8, "")]


def test_weights_in_plain_attributes() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.s = int4(), scale(N)

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.w.to(BF16)) * self.s

    _, rows = run(Plain(), torch.randn(M, K, dtype=BF16), **REFERENCE)
    assert [(row.module, row.bits, row.declined) for row in rows] == [("w", 4, "")]


# What must stay as it is, with the reason.


def declined(forward: Callable[..., Tensor], x: Tensor, **tensors: Tensor) -> str:
    _, rows = run(Written(forward, tensors), x, rest="eager")
    assert len(rows) == 1 and rows[0].kernel is None, rows
    return rows[0].declined


X = torch.randn(M, K, generator=torch.Generator().manual_seed(3)).to(BF16)


def test_a_weight_that_depends_on_the_input_is_declined() -> None:
    reason = declined(lambda m, x: linear(x, (m.w.to(BF16) * m.s[:, None]) * x.abs().max()), X, w=int8(), s=scale(N))
    assert "depends on an input" in reason


def test_a_weight_that_is_an_argument_is_declined() -> None:
    w = int8()
    with torch.no_grad():
        compiled = torch.compile(lambda x, w: linear(x, w.to(BF16)), backend="qcompile", options={"rest": "eager"})
        assert torch.equal(compiled(X, w), linear(X, w.to(BF16)))
    (row,) = qcompile.report().sites
    assert "depends on an input" in row.declined


def test_a_weight_that_the_graph_changes_is_declined() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.w.copy_(m.w + 1)  # type: ignore[operator,union-attr]
        return linear(x, m.w.to(BF16) * m.s[:, None])

    model = Written(forward, {"w": int8(), "s": scale(N)})
    twin = Written(forward, {"w": model.w.clone(), "s": model.s.clone()})
    compiled = torch.compile(model, backend="qcompile", options={"rest": "eager"})
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(X), twin(X))
    assert "changed by the graph" in qcompile.report().sites[0].declined


def test_an_addition_between_weight_and_product_is_declined() -> None:
    noise = torch.randn(N, K).to(BF16)
    reason = declined(lambda m, x: linear(x, m.w.to(BF16) * m.s[:, None] + m.noise), X, w=int8(), s=scale(N), noise=noise)
    assert "integers" in reason


def test_noise_without_a_scale_is_declined() -> None:
    noise = torch.randn(N, K).to(BF16)
    reason = declined(lambda m, x: linear(x, m.w.to(BF16) + m.noise), X, w=int4(), noise=noise)
    assert "integers" in reason


def test_float_weights_are_no_sites() -> None:
    _, rows = run(Written(lambda m, x: linear(x, m.w), {"w": torch.randn(N, K).to(BF16)}), X, rest="eager")
    assert rows == ()


def test_a_low_bit_index_does_not_make_a_float_weight_quantized() -> None:
    order = torch.randperm(N).to(torch.int32)
    reason = declined(lambda m, x: linear(x, m.w[m.order]), X, w=torch.randn(N, K).to(BF16), order=order)
    assert "integers" in reason


def test_experts_are_declined() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.bmm(x, m.w.to(BF16) * m.s)  # type: ignore[operator,union-attr]

    x = torch.randn(3, M, K).to(BF16)
    assert "batch of 3 matrices" in declined(forward, x, w=torch.randint(-8, 8, (3, K, N), dtype=torch.int8), s=scale(3, 1, N))


def test_a_scale_along_k_is_declined_or_kept_outside() -> None:
    reason = declined(lambda m, x: linear(x, m.w.to(BF16) * m.s), X, w=int8(), s=scale(1, K) * 100)
    assert reason
    qcompile.report()
    torch._dynamo.reset()
    _, rows = run(Written(lambda m, x: linear(x * m.s, m.w.to(BF16)), {"w": int8(), "s": scale(K)}), X, **REFERENCE)
    assert [row.kernel for row in rows] == ["reference.quantized_linear"]


@pytest.mark.parametrize("m", [M, N])
def test_a_scale_along_m_stays_outside(m: int) -> None:
    x = torch.randn(m, K).to(BF16)
    model = Written(lambda s, x: linear(x, s.w.to(BF16)) * s.c, {"w": int8(), "c": scale(m, 1)})
    _, rows = run(model, x, **REFERENCE)
    assert [(row.bits, row.kernel) for row in rows] == [(8, "reference.quantized_linear")]


@pytest.mark.parametrize("cast", [Tensor.float, Tensor.clone])
def test_a_factor_that_widens_float16_stays_outside(cast: Callable[[Tensor], Tensor]) -> None:
    # Inside the kernel the tiny result would be a subnormal float16.
    model = Written(lambda m, x: cast(linear(x, m.w.to(F16))) * m.s, {"w": int8(), "s": scale(N, dtype=F32) * 1e-6})
    _, rows = run(model, X.to(F16) / 8, **REFERENCE)
    assert [row.bits for row in rows] == [8]
