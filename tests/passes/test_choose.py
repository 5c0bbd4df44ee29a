"""choose: every site has a decision; the reasons of all others are there, the options' ones first."""

from typing import Any

import pytest
import torch
from support.graphs import through, with_state
from support.packed_linears import Block, packed_linear
from support.spellings import BF16, SPELLINGS, K, N, Written

from qcompile.graph.slices import Slices
from qcompile.options import Options
from qcompile.pipeline import GraphSite, State
from qcompile.proofs.rewrite import Rewritten
from qcompile.targets.registry import kernels

X = torch.zeros(4, K, dtype=BF16)


def decided(model: Any, **options: Any) -> list[GraphSite]:
    state: State = with_state(model, X, through("choose"), Options(**options))
    return state.sites


def test_a_decision_and_all_reasons() -> None:
    for site in decided(Block(), kernels=("reference",)):
        assert site.kernel is not None and site.kernel.name == site.report.kernel == "reference.quantized_linear"
        assert set(site.report.reasons) == set(kernels()) - {"reference.quantized_linear"}
        assert all(sentences[0] == "not in option kernels" for sentences in site.report.reasons.values())
        assert site.report.sqnr_db is not None and site.report.sqnr_db >= 40


def test_reference_is_never_chosen_silently() -> None:
    (site,) = decided(packed_linear(N, K), disable=("zentorch", "native", "torch", "xpu", "rdna3"))
    assert site.kernel is None
    assert site.report.reasons["reference.quantized_linear"] == (
        "for checking, not for speed: only used if option kernels names it",
    )


def test_without_a_kernel_fused_sites_are_apart_again() -> None:
    sites = decided(Block(), disable=tuple(kernels()))
    assert [site.parts for site in sites] == [()] * 4
    assert [site.report.note for site in sites] == [""] * 4


def test_the_platform_decides() -> None:
    (site,) = decided(packed_linear(N, K), platform="zen4,zentorch=absent")
    assert "zentorch is absent" in site.report.reasons["zentorch.woq_linear"][0]


def test_all_reasons_not_the_first() -> None:
    (site,) = decided(packed_linear(N, K), platform="aarch64")
    reasons = site.report.reasons["zentorch.dynamic_qlinear"]
    assert len(reasons) >= 3, reasons


def test_one_proof_of_a_rewrite_holds_for_the_same_code_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two linears of one kind that are written differently are proven apart, two that are written alike together."""
    alike = [spelling for spelling in SPELLINGS if spelling.name in {"linear then scale, 2-D", "scale times linear"}]
    assert len(alike) == 2
    models = [spelling.model() for spelling in (alike[0], alike[1], alike[0])]

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(models)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x * number) for number, layer in enumerate(self.layers)]

    proven: list[str] = []

    def verify_rewrite(_: object, parts: list[Rewritten], __: object) -> str:
        proven.extend(part.module for part in parts)
        return ""

    monkeypatch.setattr("qcompile.passes.choose.verify_rewrite", verify_rewrite)
    sites = decided(Both(), kernels=("reference",))
    assert len({site.site for site in sites}) == 1
    assert proven == ["layers.0", "layers.1"]


def test_the_proof_of_a_large_rewrite_looks_at_strips_from_the_first_row_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    n, k = 8704, 1024
    seen: list[range] = []
    evaluate = Slices.evaluate

    def watched(self: Slices, ranges: Any) -> Any:
        if "m" in ranges:  # a rewrite's proof; kernels and weights are proven without an input
            seen.append(ranges["n"])
        return evaluate(self, ranges)

    monkeypatch.setattr(Slices, "evaluate", watched)
    spelling = next(item for item in SPELLINGS if item.name == "linear of the scaled")
    model = Written(spelling.forward, {"w": torch.ones(n, k, dtype=torch.int8), "s": torch.rand(n).to(BF16)})
    with_state(model, torch.zeros(4, k, dtype=BF16), through("choose"), Options(kernels=("reference",)))
    assert len(seen) >= 8
    assert seen[0].start == 0 and seen[-1].stop == n
