"""Products of one or two rows with a dense bfloat16 weight are our own where the options allow it; all others are as they were."""

from typing import Any

import pytest
import torch
from support.native_weights import require_kernels
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from qcompile.hardware import platform
from qcompile.meaning import sqnr_db
from qcompile.reporting.report import report
from qcompile.reporting.rows import SiteReport
from qcompile.targets import native_dense

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def require() -> None:
    require_kernels()
    reasons = native_dense.missing(platform())
    if reasons:
        pytest.skip(reasons[0])


class Head(nn.Module):
    def __init__(self, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(64, 48, bias=bias, dtype=dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lm_head(x)
        return result


def run(model: nn.Module, x: Tensor, **options: Any) -> tuple[list[SiteReport], Tensor]:
    with torch.no_grad():
        got: Tensor = torch.compile(model, backend="qcompile", options=options or None)(x)
    return [row for row in report().others if row.format == "dense"], got


@pytest.mark.parametrize("rest", ["eager", "inductor"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 64), (64,)])
def test_few_rows(shape: tuple[int, ...], bias: bool, rest: str) -> None:
    require()
    model, x = Head(bias=bias), torch.randn(shape).bfloat16()
    rows, got = run(model, x, rest=rest)
    assert [(row.module, row.kernel, row.n, row.k) for row in rows] == [("lm_head", "native.dense", 48, 64)]
    assert rows[0].sqnr_db is not None and rows[0].sqnr_db >= 40.0 and rows[0].bytes_after == rows[0].bytes_before == 48 * 64 * 2
    assert got.shape == (*shape[:-1], 48) and sqnr_db(model(x), got) >= 45.0
    assert report().sites == ()


@pytest.mark.parametrize(("rows", "dtype"), [(3, torch.bfloat16), (1, torch.float32)])
def test_what_pytorch_does_as_well_is_left_without_a_row(rows: int, dtype: torch.dtype) -> None:
    model, x = Head(dtype=dtype), torch.randn(rows, 64).to(dtype)
    found, got = run(model, x, rest="eager")
    assert found == [] and torch.equal(got, model(x))


def test_a_changing_number_of_rows_is_one_graph() -> None:
    require()
    model = Head()
    compiled = torch.compile(model, backend="qcompile", dynamic=True, options={"rest": "eager"})
    with torch.no_grad():
        for rows in (2, 9, 3):
            x = torch.randn(rows, 64).bfloat16()
            assert sqnr_db(model(x), compiled(x)) >= 45.0
    assert [row.kernel for row in report().others] == ["native.dense"]


def test_a_changed_weight_is_read_at_the_next_call() -> None:
    require()
    model, x = Head(), torch.randn(1, 64).bfloat16()
    compiled = torch.compile(model, backend="qcompile")
    with torch.no_grad():
        compiled(x)
        model.lm_head.weight.mul_(-3)
        assert sqnr_db(model(x), compiled(x)) >= 45.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"disable": ["native.dense"]}, "disabled by option disable"),
        ({"kernels": ["zentorch"]}, "not in option kernels"),
        ({"fuel": 0}, "the rewrite budget (option fuel) is used up"),
    ],
)
def test_options_are_obeyed(options: dict[str, Any], text: str) -> None:
    if "fuel" in options:
        require()
    model, x = Head(), torch.randn(1, 64).bfloat16()
    rows, got = run(model, x, rest="eager", **options)
    assert rows[0].kernel is None and text in rows[0].reasons["native.dense"]
    assert torch.equal(got, model(x))


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    monkeypatch.setattr("qcompile.passes.dense.call", lambda x, weight, _: x.new_zeros((*x.shape[:-1], weight.shape[0])))
    model, x = Head(), torch.randn(1, 64).bfloat16()
    rows, got = run(model, x, rest="eager")
    assert "wrong on a probe" in rows[0].reasons["native.dense"][0] and torch.equal(got, model(x))


@pytest.mark.parametrize("size", [2048, 1 << 20])
def test_small_loops_stay_on_one_thread(size: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, code = run_and_get_code(torch.compile(lambda x: torch.exp(x) * x, backend="qcompile"), torch.randn(size))
    finally:
        torch.set_num_threads(threads)
    assert ("omp parallel" in "".join(code)) == (size > 8192)
