"""Changing batches and lengths cost one more compilation at most; empty inputs; gradients go to Inductor unchanged."""

import warnings
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from support.spellings import BF16, F32, SPELLINGS, K, N, Written, int8, linear, scale
from torch import Tensor, nn

import qcompile
from qcompile.meaning import sqnr_db

EAGER: dict[str, Any] = {"rest": "eager", "kernels": ["reference"]}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compilations() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def plain_compilations(model: Any, rows: tuple[int, ...], dtype: torch.dtype) -> int:
    """What PyTorch alone needs for the same calls: torch 2.15 guards that a view has its base's shape, for a weight on the left."""
    torch._dynamo.reset()
    before = compilations()
    run = torch.compile(model, backend="aot_eager")
    for count in rows:
        agrees(model, run, count, K, dtype=dtype)
    return compilations() - before


def served() -> list[str | None]:
    return [row.kernel for row in qcompile.report().sites]


def agrees(model: Any, run: Any, *shape: int, dtype: torch.dtype = BF16) -> None:
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        want, got = model(x), run(x)
    assert got.shape == want.shape
    assert want.numel() == 0 or sqnr_db(want, got) >= 40


BATCHED = [name for spelling in SPELLINGS if len(spelling.shape) == 3 and spelling.shape[0] == 2 for name in [spelling.name]]


@pytest.mark.parametrize("name", BATCHED)
def test_batch_and_length_change_with_one_more_compilation(name: str) -> None:
    spelling = next(spelling for spelling in SPELLINGS if spelling.name == name)
    model = spelling.model()
    run = torch.compile(model, backend="qcompile", options=EAGER)
    for batch, length in ((2, 3), (3, 5), (4, 3), (7, 11), (2, 100)):
        agrees(model, run, batch, length, K, dtype=spelling.dtype)
    assert compilations() <= 2
    assert served() == ["reference.quantized_linear"]


@pytest.mark.parametrize(
    "name", [spelling.name for spelling in SPELLINGS if spelling.shape == (6, K) and spelling.name != "weight on the left of addmm"]
)
def test_rows_change_with_one_more_compilation(name: str) -> None:
    spelling = next(spelling for spelling in SPELLINGS if spelling.name == name)
    model = spelling.model()
    run = torch.compile(model, backend="qcompile", options=EAGER)
    rows = (6, 5, K, N, 100)  # K and N, because a view may mistake rows for columns
    for count in rows:
        agrees(model, run, count, K, dtype=spelling.dtype)
    assert served() == ["reference.quantized_linear"]
    made = compilations()
    assert made <= 2 or made <= plain_compilations(model, rows, spelling.dtype)


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_a_stack_under_changing_shapes(rest: str) -> None:
    model = Stack(1)
    run = torch.compile(model, backend="qcompile", options={**EAGER, "rest": rest})
    for batch, length in ((2, 3), (3, 5), (2, 7)):
        agrees(model, run, batch, length, K)
    assert compilations() <= 2
    assert served() == ["reference.quantized_linear"] * 4


def test_views_by_symbolic_sizes() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        flat = x.reshape(b * s, K)
        y = (flat @ m.w.T.to(BF16)).view(b, s, N) * m.s  # type: ignore[operator,union-attr]
        return y.view(b, s, 4, N // 4).transpose(1, 2)

    model = Written(forward, {"w": int8(), "s": scale(N)})
    run = torch.compile(model, backend="qcompile", options=EAGER, dynamic=True)
    for batch, length in ((2, 3), (5, 4), (3, 9)):
        agrees(model, run, batch, length, K)
    assert compilations() == 1
    assert served() == ["reference.quantized_linear"]


def rounded_by_hand(m: nn.Module, x: Tensor) -> Tensor:
    step = x.float().abs().amax(-1, keepdim=True) / 127
    step = torch.where(step == 0, torch.ones_like(step), step)
    codes = (x.float() / step).round().clamp(-127, 127)
    return linear((codes * step).to(BF16), m.w.to(BF16)) * m.s  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("dynamic", [False, True])
def test_rounded_activations_are_recognized_under_symbolic_sizes(dynamic: bool) -> None:
    model = Written(rounded_by_hand, {"w": int8(), "s": scale(N)})
    run = torch.compile(model, backend="qcompile", options=EAGER, dynamic=dynamic)
    agrees(model, run, 2, 3, K)
    (row,) = qcompile.report().sites
    assert (row.kernel, row.activation) == ("reference.quantized_linear", "token/127/-127")
    if dynamic:
        agrees(model, run, 4, 5, K)
        assert compilations() == 1


def test_marked_dynamic_compiles_once() -> None:
    model = Stack(1)
    run = torch.compile(model, backend="qcompile", options=EAGER)
    with torch.no_grad():
        for rows in (4, 9, 33):
            x = torch.randn(rows, K).to(BF16)
            torch._dynamo.mark_dynamic(x, 0)
            assert sqnr_db(model(x), run(x)) >= 40
    assert compilations() == 1


@pytest.mark.parametrize("options", [EAGER, {"rest": "eager"}])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_no_rows_and_one_row(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = {"w": int8(), "s": scale(N, 1, dtype=dtype)}
    model = Written(lambda m, x: linear(x, m.w * m.s), tensors)
    run = torch.compile(model, backend="qcompile", options=options)
    for rows in (3, 5, 1, 0):
        agrees(model, run, rows, K, dtype=dtype)
    agrees(model, run, 2, 0, K, dtype=dtype)


def test_a_cache_that_the_graph_changes_is_no_constant() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Stack(1)
            self.register_buffer("cache", torch.zeros(8, K, dtype=torch.int8))

        def forward(self, x: Tensor, at: Tensor) -> Tensor:
            self.cache.index_copy_(0, at, (x * 10).round().clamp(-128, 127).to(torch.int8))  # type: ignore[operator]
            y: Tensor = self.linear(x) @ (self.cache.to(BF16) * 0.1).T  # type: ignore[operator]
            return y

    torch.manual_seed(2)
    model = Cached()
    torch.manual_seed(2)
    same = Cached()
    same.load_state_dict(model.state_dict())
    run = torch.compile(model, backend="qcompile", options=EAGER)
    with torch.no_grad():
        for step in range(4):
            x = torch.randn(1, K).to(BF16)
            assert sqnr_db(same(x, torch.tensor([step])), run(x, torch.tensor([step]))) >= 40
    assert compilations() == 1
    assert len([kernel for kernel in served() if kernel]) == 4


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_gradients_go_to_inductor_with_one_warning(rest: str) -> None:
    model = next(spelling for spelling in SPELLINGS if spelling.name == "fp32 throughout").model()
    run = torch.compile(model, backend="qcompile", options={"rest": rest})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for rows in (3, 4):
            x = torch.randn(rows, K, requires_grad=True)
            run(x).square().sum().backward()
            ours = x.grad
            x.grad = None
            model(x).square().sum().backward()
            assert ours is not None and x.grad is not None
            assert sqnr_db(x.grad, ours) >= 60
    assert len([item for item in seen if "gradients are needed" in str(item.message)]) == 1
    assert served() == []


def test_inference_mode_is_served() -> None:
    model = Stack(1)
    run = torch.compile(model, backend="qcompile", options=EAGER)
    x = torch.randn(3, K).to(BF16)
    with torch.inference_mode():
        assert sqnr_db(model(x), run(x)) >= 40
    assert served() == ["reference.quantized_linear"] * 4


def test_grad_mode_without_gradients_is_served() -> None:
    model = Stack(1)
    run = torch.compile(model, backend="qcompile", options=EAGER)
    x = torch.randn(3, K).to(BF16)
    assert sqnr_db(model(x), run(x)) >= 40
    assert served() == ["reference.quantized_linear"] * 4


def test_gradients_through_packed_weights() -> None:
    """As a library loads them, scales may ask for gradients; they are constants and get none, the input does."""
    model = Stack(1, width=K)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("scale"))
    run = torch.compile(model, backend="qcompile", options=EAGER)
    x = torch.randn(3, K).to(BF16).requires_grad_()
    with pytest.warns(UserWarning, match="gradients are needed"):
        run(x).float().square().sum().backward()
    ours, x.grad = x.grad, None
    model(x).float().square().sum().backward()
    assert ours is not None and x.grad is not None and sqnr_db(x.grad, ours) >= 35
    assert all(parameter.grad is None for parameter in model.parameters())
    assert served() == []
