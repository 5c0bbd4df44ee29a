"""What AOTAutograd's wrapper would do is done by the caller, or the wrapper stays; nothing that torch says is passed over."""

from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from torch import Tensor, nn

import qcompile
from qcompile.run.compilation import Compilation
from qcompile.torch_internals.aot_wrapper import Duties, duties

WIDTH, DEPTH = 64, 12

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def metadata(function: Callable[..., Any], *inputs: Any) -> Any:
    """AOTAutograd's metadata of an inference graph of this function."""
    from torch._dynamo.backends.common import aot_autograd  # noqa: PLC0415
    from torch._guards import TracingContext  # noqa: PLC0415

    found: list[Any] = []

    def inner(gm: Any, _: Any) -> Any:
        context = TracingContext.try_get()
        assert context is not None
        found.append(context.fw_metadata)
        return gm

    compiler = aot_autograd(fw_compiler=inner, inference_compiler=inner, keep_inference_input_mutations=True)
    with torch.no_grad():
        torch.compile(function, backend=compiler, fullgraph=True)(*inputs)
    return found[0]


def test_a_plain_graph_asks_for_nothing() -> None:
    assert duties(metadata(lambda x: x.relu() + 1, torch.randn(3, 4))) == Duties()


def test_written_inputs() -> None:
    assert duties(metadata(lambda x, y: (y.add_(x), x + 1)[1], torch.randn(3), torch.randn(3))) in (
        Duties(written=(0,)),
        Duties(written=(1,)),
    )


def test_dynamic_sizes() -> None:
    x = torch.randn(3, 4)
    torch._dynamo.mark_dynamic(x, 0)
    found = duties(metadata(lambda x: (x + 1, x.sum()), x))
    assert found == Duties(dynamic=((0, frozenset({0})),))


@pytest.mark.parametrize("function", [lambda x: x.view(-1), lambda x: (x[1:], x + 1), lambda x: x.t()])
def test_a_view_of_an_input_keeps_the_wrapper(function: Callable[..., Any]) -> None:
    found = duties(metadata(function, torch.randn(3, 4)))
    assert isinstance(found, str) and found.startswith("base_idx")


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("grad_enabled_mutation", True),
        ("grad_enabled_mutation", False),
        ("act_input_indices", [0]),
        ("tokens", {0: torch.zeros(0)}),
        ("num_graphsafe_rng_states", 1),
        ("graphsafe_rng_state_index", 0),
    ],
)
def test_what_asks_keeps_the_wrapper(name: str, item: Any) -> None:
    meta = metadata(lambda x: x + 1, torch.randn(3))
    if name not in {each.name for each in fields(meta)}:
        assert name == "act_input_indices"  # has another name in newer versions of torch
        name, item = "act_input_paths", [(0,)]
    setattr(meta, name, item)
    assert duties(meta) == f"{name} asks for something"


def _with(record: Any, name: str) -> Any:
    """The same record of a torch that knows one field more."""
    values = {item.name: getattr(record, item.name) for item in fields(record)}
    more = make_dataclass("Newer", [*values, name])(**values, **{name: None})
    for derived in set(vars(record)) - set(values):
        setattr(more, derived, getattr(record, derived))
    return more


def test_what_a_newer_torch_says_keeps_the_wrapper() -> None:
    meta = metadata(lambda x: x + 1, torch.randn(3))
    expected = "this version of torch says new_duty, which is not known here"
    assert duties(_with(meta, "new_duty")) == expected
    for part in ("input_info", "output_info"):
        changed = replace(meta)
        setattr(changed, part, [_with(item, "new_duty") for item in getattr(meta, part)])
        assert duties(changed) == expected


class Cached(nn.Module):
    """Layers that each write their input into a tensor of theirs, as a cache of keys is written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stack = Stack(DEPTH, WIDTH, dtype=torch.float32)

    def forward(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        for layer, rows in zip(self.stack.layers, kept, strict=True):
            rows.index_copy_(0, torch.arange(x.shape[0]), x)
            x = layer(x) + rows.mean(0)
        return x


@dataclass
class Spied:
    direct: list[bool]
    gradients: list[bool]


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Spied:
    """Whether regions are called without the wrapper, and whether gradients are on while their code runs."""
    from qcompile.torch_internals.inductor import without_bookkeeping as original  # noqa: PLC0415

    found = Spied([], [])

    def spy(code: Any, install: Any) -> Any:
        def call(args: list[Any]) -> Any:
            found.gradients.append(torch.is_grad_enabled())
            return lean(args)

        lean = original(code, lambda _: None)
        return call

    compile_one = Compilation.compile

    def compiled(self: Compilation, *args: Any) -> Any:
        made = compile_one(self, *args)
        found.direct.append(self.direct)
        return made

    monkeypatch.setattr("qcompile.run.regions.stitch.without_bookkeeping", spy)
    monkeypatch.setattr(Compilation, "compile", compiled)
    return found


def test_a_region_that_writes_to_an_input(spied: Spied) -> None:
    """Its version goes up as it does in eager mode; gradients are off in the code, and on again behind it."""
    model, x = Cached(), torch.randn(3, WIDTH, dtype=torch.float32)
    kept = [torch.zeros(5, WIDTH, dtype=torch.float32) for _ in range(DEPTH)]
    run: Any = torch.compile(model, backend="qcompile")
    for calls in (1, 2):
        assert torch.is_grad_enabled()
        y = run(x, kept)
        assert torch.is_grad_enabled() and not y.requires_grad
        assert [item._version for item in kept] == [calls] * DEPTH
    assert all(spied.direct) and spied.gradients and not any(spied.gradients)
    assert all(row.kernel for row in qcompile.report().sites)
    with torch.no_grad():
        assert torch.allclose(model(x, [item.clone() for item in kept]), y, rtol=1e-3, atol=1e-3)


def test_an_unknown_duty_keeps_the_wrapper_of_regions(spied: Spied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.run.compilation.duties", lambda _: "this version of torch says new_duty, which is not known here")
    model, x = Cached(), torch.randn(3, WIDTH, dtype=torch.float32)
    kept = [torch.zeros(5, WIDTH, dtype=torch.float32) for _ in range(DEPTH)]
    run: Any = torch.compile(model, backend="qcompile")
    with torch.no_grad():
        y = run(x, kept)
        assert torch.allclose(model(x, [item.clone() for item in kept]), y, rtol=1e-3, atol=1e-3)
    assert spied.direct and not any(spied.direct)
    assert [item._version for item in kept] == [1] * DEPTH
