"""A graph for any number of rows: with allow_a8 each call runs in the kernel that is quick for its rows, without recompiling."""

import re
from typing import Any

import pytest
import torch
from support.native_weights import require_kernels
from support.packed_linears import packed_linear

import qcompile
from qcompile.hardware import platform
from qcompile.kernel import Kernel
from qcompile.meaning import sqnr_db
from qcompile.proofs.kernel import verify

pytestmark = pytest.mark.usefixtures("fresh_compiler")
SIZE = 1024


def test_few_rows_are_not_rounded() -> None:
    require_kernels()
    if not platform().isa & {"avx512_vnni", "avx_vnni"}:
        pytest.skip("needs VNNI: without it products of 8 bits are no quicker, and none is rounded")
    model = packed_linear(SIZE, SIZE, 128)
    run = torch.compile(
        model, backend="qcompile", dynamic=True, options={"allow_a8": True, "measure": False, "kernels": ["native"]}
    )
    with torch.no_grad():
        for rows in (2, 3, 100, 2, 64):
            x = torch.randn(rows, SIZE).bfloat16()
            # bfloat16 output: 51 dB; activations of 8 bits: 43 dB
            got = sqnr_db(model(x), run(x))
            assert got > 49 if rows <= 3 else 40 < got < 47, rows
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (row,) = qcompile.report().sites
    assert row.kernel == "native.int4_a8"
    (reason,) = row.reasons["native.int4"]
    assert re.fullmatch(r"runs calls of fewer than \d+ rows, inside the operator of native\.int4_a8", reason)


def test_a_kernel_for_few_rows_that_fails_its_proof_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_kernels()

    def wrong(kernel: Kernel, *rest: Any) -> tuple[str, float | None]:
        return ("12 dB instead of 40", 12.0) if kernel.name == "native.int4" else verify(kernel, *rest)

    monkeypatch.setattr("qcompile.passes.choose.verify", wrong)
    model = packed_linear(SIZE, SIZE, 128)
    run = torch.compile(
        model, backend="qcompile", dynamic=True, options={"allow_a8": True, "measure": False, "kernels": ["native"]}
    )
    with torch.no_grad():
        x = torch.randn(2, SIZE).bfloat16()
        assert 40 < sqnr_db(model(x), run(x)) < 47
    (row,) = qcompile.report().sites
    assert (row.kernel, row.reasons["native.int4"]) == ("native.int4_a8", ("12 dB instead of 40",))
