"""A small GPTQ Llama, compiled for gfx1100 on this machine, generates the right tokens through the emulated kernels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import gptq_folder, llama_config, token_ids
from support.emulated_rdna3 import Emulator

import qcompile
from qcompile.reporting.report import Report

LINEARS = 2 * 7  # of the two layers
LEAST_CALLS = 2 * 4  # per token, if q, k, v and gate, up are fused


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Otherwise the models of several tests, which share their forward's code, run into Dynamo's limit of recompilations."""
    torch.compiler.reset()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric_v1", "asymmetric_v2"])
def test_llama_with_act_order_generates_the_tokens_of_the_dense_model(
    tmp_path: Path, emulated_op: Any, emulator: Emulator, symmetric: bool
) -> None:
    checkpoint = gptq_folder(tmp_path, group=32, symmetric=symmetric, act_order=True, v2=not symmetric)
    tokens = token_ids(llama_config(), batch=1, length=9)
    model = qcompile.load(tmp_path).eval()
    with torch.no_grad():
        expected = checkpoint.dense.eval().generate(tokens, max_new_tokens=3, do_sample=False)
        logits = checkpoint.dense(tokens).logits.double()
        qcompile.compile(model, platform="gfx1100", rest="eager", fallback="error")
        before = len(qcompile.report().sites)
        ours = model(tokens).logits.double()
        served = [site.kernel for site in qcompile.report().sites[before:]]
        launched = emulator.library.qcompile_emulation_launches()
        result = model.generate(tokens, max_new_tokens=3, do_sample=False)
    assert served
    assert set(served) == {"rdna3.gptq_gemm"}
    assert emulator.library.qcompile_emulation_launches() - launched >= 3 * LEAST_CALLS
    assert float(((ours - logits).square().sum() / logits.square().sum()).sqrt()) < 5e-3
    assert torch.equal(result, expected)


def test_explain_shows_the_kernel_for_all_linears_without_running_it(tmp_path: Path) -> None:
    gptq_folder(tmp_path, group=32, act_order=True)
    model = qcompile.load(tmp_path).eval()
    report: Report = qcompile.explain(model, token_ids(llama_config()), platform="gfx1100")
    assert [(site.kernel, site.act_order) for site in report.sites] == [("rdna3.gptq_gemm", True)] * LINEARS
