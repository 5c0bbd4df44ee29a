"""Whatever fails for one of three linears costs that one: the others are served, its numbers stay, and its row says why."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.packed_linears import packed_linear
from torch import Tensor, nn

import qcompile
from qcompile.graph.nodes import value
from qcompile.meaning import sqnr_db
from qcompile.reporting.rows import SiteReport

WIDTHS = (64, 96, 128, 32)

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Chain(nn.Module):
    """Three linears of different sizes, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(packed_linear(n, k) for k, n in pairwise(WIDTHS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class Three(nn.Module):
    """Three linears on one input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(packed_linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (layer(x) for layer in self.layers)
        return torch.relu(first * second + third)


def run(model: nn.Module, **options: Any) -> tuple[SiteReport, ...]:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(4), dtype=torch.bfloat16)
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", **options})(x)
    assert sqnr_db(want, got) >= 30
    return qcompile.report().sites


def second_call(monkeypatch: pytest.MonkeyPatch, target: str, instead: Callable[..., Any]) -> None:
    """The second call of this function goes to `instead`, which gets the function before its arguments."""
    name, _, last = target.rpartition(".")
    owner: Any = __import__(name, fromlist=[last]) if name.islower() else None
    if owner is None:
        module, _, kind = name.rpartition(".")
        owner = getattr(__import__(module, fromlist=[kind]), kind)
    original = getattr(owner, last)
    calls = iter(range(10**6))

    def spy(*args: Any, **kwargs: Any) -> Any:
        return instead(original, *args, **kwargs) if next(calls) == 1 else original(*args, **kwargs)

    monkeypatch.setattr(owner, last, staticmethod(spy) if isinstance(owner, type) and last == "of" else spy)


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a broken part\nand a page of what it was")


def sentences(row: SiteReport) -> str:
    return " ".join([row.declined, row.note, *(text for texts in row.reasons.values() for text in texts)])


STEPS = [
    "qcompile.passes.recognize.find_product",
    "qcompile.recognize.weight.Reader.read",
    "qcompile.passes.recognize.recognize_activation",
    "qcompile.recognize.still_true.Recheck.of",
    "qcompile.passes.recognize.raise_product",
    "qcompile.passes.recognize.module_path",
    "qcompile.recognize.rewrite._replay",
    "qcompile.passes.choose._decision",
    "qcompile.passes.choose.candidates",
    "qcompile.passes.choose.verify_rewrite",
    "qcompile.passes.choose.pack_recipe",
    "qcompile.passes.prepack.emit_pack",
    "qcompile.passes.prepack.operand_nodes",
    "qcompile.folding.fold_site",
    "qcompile.passes.lower._lower",
]


@pytest.mark.parametrize("target", STEPS)
def test_a_step_that_fails_for_one(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    second_call(monkeypatch, target, fail)
    rows = run(Chain(), kernels=["reference"])
    assert sorted(row.module for row in rows) == ["layers.0", "layers.1", "layers.2"]
    served = [row.module for row in rows if row.kernel]
    (other,) = [row for row in rows if not row.kernel]
    assert served == ["layers.0", "layers.2"]
    assert "a broken part" in sentences(other) and "and a page" not in sentences(other)


@pytest.mark.parametrize("fallback", ["dense", "packed"])
def test_a_dense_weight_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, fallback: str) -> None:
    """The packing of one linear fails, then making its dense weight does too."""
    from qcompile import folding  # noqa: PLC0415

    original = folding.inputs

    def inputs(state: Any, site: Any, *args: Any, **kwargs: Any) -> Any:
        return fail() if site.module == "layers.1" else original(state, site, *args, **kwargs)

    monkeypatch.setattr(folding, "inputs", inputs)
    rows = {row.module: row for row in run(Chain(), fallback=fallback)}
    assert [name for name, row in rows.items() if row.kernel is None] == ["layers.1"]
    assert rows["layers.1"].fallback == "packed" and rows["layers.1"].bytes_after == rows["layers.1"].bytes_before
    assert any(
        "packing failed: RuntimeError: a broken part" in text for texts in rows["layers.1"].reasons.values() for text in texts
    )


def test_an_error_is_asked_for_when_packing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    second_call(monkeypatch, "qcompile.passes.prepack.emit_pack", fail)
    with pytest.raises(Exception, match="its packing failed: RuntimeError: a broken part"):
        run(Chain(), fallback="error")


def _narrower(raise_product: Any, *args: Any) -> Any:
    node, result = raise_product(*args)
    result.meta["val"] = value(result)[..., :-1]
    return node, result


def _too_early(raise_product: Any, graph: Any, *args: Any) -> Any:
    node, result = raise_product(graph, *args)
    next(iter(graph.nodes)).append(result)
    return node, result


def _without_a_value(raise_product: Any, *args: Any) -> Any:
    node, result = raise_product(*args)
    del node.meta["val"]
    return node, result


@pytest.mark.parametrize(
    ("instead", "reason"), [(_narrower, "instead of"), (_too_early, "before it exists"), (_without_a_value, "has no fake value")]
)
def test_a_call_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., Any], reason: str) -> None:
    second_call(monkeypatch, "qcompile.passes.recognize.raise_product", instead)
    rows = run(Chain())
    assert [row.module for row in rows if row.kernel] == ["layers.0", "layers.2"]
    assert reason in next(row.declined for row in rows if not row.kernel)


@pytest.mark.parametrize("target", ["qcompile.passes.fuse._joined", "qcompile.passes.fuse._site_of", "qcompile.passes.fuse._cut"])
def test_what_cannot_be_joined_is_served_apart(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(target, fail)
    rows = run(Three())
    assert len(rows) == 3 and all(row.kernel for row in rows)
    assert all("not joined with the other linears on its input: RuntimeError: a broken part" in row.note for row in rows)


@pytest.mark.parametrize("target", ["qcompile.passes.prepack.emit_pack", "qcompile.passes.lower._lower"])
def test_a_joined_call_that_fails_is_three_again(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(target, fail)
    rows = run(Three())
    assert len(rows) == 3 and not any(row.kernel for row in rows)
    assert all("a broken part" in sentences(row) for row in rows)


def test_a_product_that_cannot_be_spelled_the_common_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "abc":
                self.register_buffer(name, torch.randint(-8, 8, (64, 64)).to(torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            x = x.mT
            for weight in (self.a, self.b, self.c):
                x = (weight.to(x.dtype) @ x) * 0.0625  # type: ignore[operator]
            return x.relu()

    second_call(monkeypatch, "qcompile.passes.normalize._left", fail)
    torch.manual_seed(5)
    rows = run(Left(), kernels=["reference"])
    assert sorted(row.module for row in rows if row.kernel) == ["a", "c"]
    (other,) = [row for row in rows if not row.kernel]
    assert other.module == "b"
    assert other.declined == "its product could not be written in the common form: RuntimeError: a broken part"


def test_the_warning_has_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("qcompile.run.compilation.rewrite", fail)
    (row,) = run(Chain())
    assert row.declined == "the graph is compiled unchanged: RuntimeError: a broken part"
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().endswith("the graph is compiled unchanged: RuntimeError: a broken part")
