"""Code of ours that raises when it is called costs its graph the kernels, and the user nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from torch import Tensor, nn

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.run.first_calls import FirstCalls
from qcompile.run.runner import Runner

WIDTH = 64
BF16 = torch.bfloat16

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Counted(nn.Module):
    """Layers that add what they see to a tensor each: run twice, they would add it twice."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stack = Stack(depth, WIDTH)

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        for layer, total in zip(self.stack.layers, seen, strict=True):
            total.add_(x.sum(0))
            x = layer(x) + total
        return x


def fail(*_: Any, **__: Any) -> Any:
    raise NameError("name 'found' is not defined\nand more")


WARNING = r"failed when it was called \(NameError: name 'found' is not defined\)"
ROW = "its compiled code failed when it was called, so the graph runs unchanged: NameError: name 'found' is not defined"


def after_the_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """Fails when everything is done and written."""

    def call(*args: Any) -> Any:
        original(*args)
        fail()

    return call


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_a_graph_that_writes_falls_back_and_writes_once(monkeypatch: pytest.MonkeyPatch, rest: str) -> None:
    monkeypatch.setattr(Runner, "__call__", after_the_call(Runner.__call__))
    model, x = Counted(2), torch.randn(3, WIDTH, dtype=BF16)
    mine, theirs = ([torch.ones(WIDTH, dtype=BF16) for _ in range(2)] for _ in range(2))
    run: Any = torch.compile(model, backend="qcompile", options={"rest": rest})
    with torch.no_grad():
        with pytest.warns(UserWarning, match=WARNING):
            got = run(x, mine)
        assert torch.equal(got, model(x, theirs))
        for _ in range(3):  # no second warning, which would be an error here
            assert sqnr_db(model(x, theirs), run(x, mine)) >= 30
    assert all(sqnr_db(left, right) >= 40 for left, right in zip(theirs, mine, strict=True))
    rows = qcompile.report().sites
    assert len(rows) == 8 and not any(row.kernel for row in rows)
    assert all([ROW] in [list(texts) for texts in row.reasons.values()] for row in rows)


def test_generated_code_of_regions_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.run.regions import stitch  # noqa: PLC0415

    original = stitch.source

    def source(name: str, *args: Any, **more: Any) -> str:
        text = original(name, *args, **more)
        return text if name == "careful" else text.replace("    return (", "    missing = 1 / 0\n    return (")

    monkeypatch.setattr(stitch, "source", source)
    model, x = Counted(12), torch.randn(3, WIDTH, dtype=BF16)
    mine, theirs = ([torch.ones(WIDTH, dtype=BF16) for _ in range(12)] for _ in range(2))
    run: Any = torch.compile(model, backend="qcompile")
    with torch.no_grad():
        with pytest.warns(UserWarning, match="ZeroDivisionError"):
            got = run(x, mine)
        assert torch.equal(got, model(x, theirs))
        assert all(torch.equal(left, right) for left, right in zip(theirs, mine, strict=True))
    assert not any(row.kernel for row in qcompile.report().sites)


def test_a_graph_without_quantized_linears_has_a_row_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.run.compilation._boxed", lambda _: fail)
    run: Any = torch.compile(nn.Linear(8, 8), backend="qcompile", options={"rest": "eager"})
    with torch.no_grad(), pytest.warns(UserWarning, match=WARNING):
        run(torch.randn(2, 8))
    (row,) = qcompile.report().sites
    assert row.declined == ROW and row.module.startswith("graph ")


def test_the_models_own_error_stays_its_own() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.table = Stack(1, WIDTH), nn.Embedding(4, WIDTH, dtype=BF16)

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(self.table(ids))  # type: ignore[no-any-return]

    model = Table()
    run: Any = torch.compile(model, backend="qcompile", options={"rest": "eager"})
    with torch.no_grad():
        for _ in range(3):
            with pytest.raises(IndexError):
                run(torch.tensor([7]))
        assert sqnr_db(model(torch.tensor([1])), run(torch.tensor([1]))) >= 30
    assert all(row.kernel for row in qcompile.report().sites)


def test_an_error_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "__call__", after_the_call(Runner.__call__))
    run: Any = torch.compile(Stack(1, WIDTH), backend="qcompile", options={"rest": "eager", "fallback": "error"})
    with torch.no_grad(), pytest.raises(NameError):
        run(torch.randn(3, WIDTH, dtype=BF16))


def net(code: Callable[..., Any], written: list[int] | None, heard: list[str]) -> FirstCalls:
    captured = torch.fx.symbolic_trace(lambda x, y: y.add_(x) + torch.rand(3))
    return FirstCalls(code, captured, written, lambda _: captured, heard.append)


def test_random_numbers_are_those_of_one_run() -> None:
    def code(x: Tensor, y: Tensor) -> Tensor:
        y.add_(x)
        torch.rand(5)
        return fail()  # type: ignore[no-any-return]

    heard: list[str] = []
    x, y = torch.ones(3), torch.ones(3)
    torch.manual_seed(1)
    with pytest.warns(UserWarning):
        got = net(code, [1], heard).call(x, y)
    torch.manual_seed(1)
    assert torch.equal(got, torch.full((3,), 2.0) + torch.rand(3)) and torch.equal(y, torch.full((3,), 2.0))
    assert heard == [ROW]


@pytest.mark.parametrize("kept", ["unknown", "too large", "released"])
def test_what_cannot_be_run_again_raises(monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    if kept == "too large":
        monkeypatch.setattr("qcompile.run.first_calls._MOST_BYTES", 8)
    heard: list[str] = []
    x, y = torch.ones(3), torch.ones(3)
    if kept == "released":
        x.untyped_storage().resize_(0)
    with pytest.raises(NameError):
        net(fail, None if kept == "unknown" else [1], heard).call(x, y)
    assert heard == [] and torch.equal(y, torch.ones(3))


def test_behind_two_calls_the_net_is_gone() -> None:
    outcomes = iter([1, 2])
    one = net(lambda *_: next(outcomes), [1], [])
    x, y = torch.ones(3), torch.ones(3)
    assert [one.call(x, y), one.call(x, y)] == [1, 2]
    assert one.call is one.code and len(one.captured.graph.nodes) == 0
    with pytest.raises(StopIteration):
        one.call(x, y)
