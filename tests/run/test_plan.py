"""What repeats is found, cut out once, and called in turn; the calls compute what the graph computed, writes to inputs included."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch.fx.experimental.proxy_tensor import make_fx

from qcompile.run.regions import Plan, SplitError, build, plan
from qcompile.run.regions.repeats import LEAST_SAVED, find_repeats, signature
from qcompile.run.regions.stitch import Step, source
from qcompile.torch_internals.inputs import example

K = 8
OPS = 12  # element-wise calls of a layer, so that a few layers are worth it


def layer(x: Tensor, weight: Tensor) -> Tensor:
    y = x
    for step in range(OPS):
        y = torch.sin(y) + step
    return x + torch.mm(y, weight)


def stack(count: int) -> Callable[..., Tensor]:
    def run(x: Tensor, *weights: Tensor) -> Tensor:
        x = x * 2
        for weight in weights[:count]:
            x = layer(x, weight)
        return x.cos()

    return run


def weights(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(K, K, generator=generator) for _ in range(count)]


def traced(function: Callable[..., Any], *inputs: Any, symbolic: bool = False) -> fx.GraphModule:
    gm: fx.GraphModule = make_fx(function, tracing_mode="symbolic" if symbolic else "fake")(*inputs)
    output = next(iter(gm.graph.find_nodes(op="output")))
    if not isinstance(output.args[0], list | tuple):
        output.args = ([output.args[0]],)
        gm.recompile()
    return gm


def inputs_of(gm: fx.GraphModule) -> list[Any]:
    return [example(node) for node in gm.graph.find_nodes(op="placeholder")]


def planned(gm: fx.GraphModule) -> Plan | None:
    return plan(gm, inputs_of(gm))


class Interpreted:
    """A region that is not compiled; it writes to what its in-place calls name."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.rows: list[Any] = []
        self.folded: list[int] = []
        self.runner = None
        self.by_value = False
        given = list(module.graph.find_nodes(op="placeholder"))
        written = {
            node.args[0] for node in module.graph.nodes if getattr(node.target, "_schema", None) and node.target._schema.is_mutable
        }
        self.writes = [number for number, node in enumerate(given) if node in written]

    def call(self, args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return self.module(*given)

    def constants(self, given: Any) -> list[Any]:
        return []

    def settle(self, given: Any) -> None:
        pass

    def adopt(self, given: Any) -> str:
        return ""


def stitched(gm: fx.GraphModule) -> Callable[..., Any]:
    found = planned(gm)
    assert found is not None
    with tracing(TracingContext(None)):
        return build(gm, inputs_of(gm), found, {}, lambda module, *_: Interpreted(module)).call


def test_equal_layers_are_one_module() -> None:
    found = planned(traced(stack(6), torch.randn(3, K), *weights(6)))
    assert found is not None
    assert [repeat.count for repeat in found.repeats] == [5]  # cut behind a product: half a layer before, half behind
    assert [part.module for part in found.parts] == [0, 1, 1, 1, 1, 1, 2]
    assert str(found) == f"5 regions of {2 * OPS + 2} nodes"


def test_a_cut_lies_behind_a_product() -> None:
    found = planned(traced(stack(6), torch.randn(3, K), *weights(6)))
    assert found is not None
    for part in found.parts[:-1]:
        assert [str(node.target) for node in part.outputs].count("aten.mm.default") == 1


def test_the_calls_compute_what_the_graph_does() -> None:
    x, rows = torch.randn(3, K), weights(6)
    gm = traced(stack(6), x, *rows)
    args = [x, *rows]
    (got,) = stitched(gm)(*args)
    assert torch.equal(got, stack(6)(x, *rows))


def test_values_are_let_go_before_their_last_reader_runs() -> None:
    gm = traced(stack(6), torch.randn(3, K), *weights(6))
    found = planned(gm)
    assert found is not None
    output = next(iter(gm.graph.find_nodes(op="output"))).args[0]
    assert isinstance(output, list | tuple)
    steps = [Step(f"region_{part.module}") for part in found.parts]
    lines = source("call", list(gm.graph.find_nodes(op="placeholder")), found, output, steps).splitlines()
    for line, following in pairwise(lines):
        if line.strip().startswith("box") and "a2" in line:
            assert "a2" in following and following.strip().startswith("del")


def test_a_layer_that_differs_is_left_out() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for index, weight in enumerate(rows):
            x = layer(x, weight)
            if index == 2:
                x = torch.tanh(x)
        return x

    x, rows = torch.randn(3, K), weights(8)
    gm = traced(run, x, *rows)
    found = planned(gm)
    assert found is not None and sum(repeat.count for repeat in found.repeats) < 8
    assert torch.equal(stitched(gm)(x, *rows)[0], run(x, *rows))


def test_equal_operators_with_other_edges_are_no_repeat() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        first = x
        for index, weight in enumerate(rows):
            y = first if index % 2 else x  # every second layer reads the model's input instead of the layer before
            for step in range(OPS):
                y = torch.sin(y) + step
            x = x + torch.mm(y, weight)
        return x

    x, rows = torch.randn(3, K), weights(8)
    gm = traced(run, x, *rows)
    found = planned(gm)
    assert found is not None and found.repeats[0].period == 2 * (2 * OPS + 2)  # two layers are one copy
    assert torch.equal(stitched(gm)(x, *rows)[0], run(x, *rows))


def test_two_places_of_one_copy_may_read_one_node_where_others_read_two() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        first = x
        for weight in rows:
            x = layer(x, weight) + first
        return x

    x, rows = torch.randn(3, K), weights(6)
    assert torch.equal(stitched(traced(run, x, *rows))(x, *rows)[0], run(x, *rows))


def test_two_stacks_are_two_repeats() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for weight in rows[:5]:
            x = layer(x, weight)
        for weight in rows[5:]:
            x = torch.relu(layer(torch.tanh(-x), weight))
        return x

    x, rows = torch.randn(3, K), weights(10)
    gm = traced(run, x, *rows)
    found = planned(gm)
    assert found is not None and len(found.repeats) == 2
    assert torch.equal(stitched(gm)(x, *rows)[0], run(x, *rows))


def test_few_nodes_are_not_worth_it() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for weight in rows:
            x = torch.mm(x, weight)
        return x

    assert planned(traced(run, torch.randn(3, K), *weights(LEAST_SAVED // 2))) is None


def test_symbolic_sizes_are_given_to_every_module() -> None:
    rows = weights(6)
    gm = traced(stack(6), torch.randn(3, K), *rows, symbolic=True)
    found = planned(gm)
    if found is None:  # sizes that no graph input is: tracing by hand gives none, AOTAutograd does
        assert not any(isinstance(example(node), torch.SymInt) for node in gm.graph.find_nodes(op="placeholder"))
        return
    x = torch.randn(7, K)
    assert torch.equal(stitched(gm)(x, *rows)[0], stack(6)(x, *rows))


def cached(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
    """Layers that write what they computed into a cache, which they read afterwards."""
    half = len(rest) // 2
    for weight, cache in zip(rest[:half], rest[half:], strict=True):
        cache.index_copy_(0, at, x)
        x = layer(x, weight) + cache.sum(0)
    return x


def cache_inputs() -> list[Tensor]:
    return [torch.randn(2, K), torch.tensor([1, 4]), *weights(6), *(torch.randn(5, K) for _ in range(6))]


def test_writes_to_inputs_go_into_their_layer() -> None:
    given = cache_inputs()
    gm = traced(cached, *given)
    found = planned(gm)
    assert found is not None and found.repeats[0].count >= 4
    (region,) = {part.module for part in found.parts if [part.module for part in found.parts].count(part.module) > 1}
    names = [str(node.target) for node in found.modules[region].graph.nodes]
    assert names.count("aten.index_copy_.default") == 1
    mine, theirs = [item.clone() for item in given], [item.clone() for item in given]
    (got,) = stitched(gm)(*mine)
    assert torch.equal(got, cached(*theirs))
    assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("late", [False, True])
def test_what_is_read_before_and_after_a_write(late: bool) -> None:
    def run(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
        early = rest[9].sum(0)
        y = cached(x, at, *rest)
        return y + (rest[9].sum(0) if late else early)

    given = cache_inputs()
    mine, theirs = [item.clone() for item in given], [item.clone() for item in given]
    (got,) = stitched(traced(run, *given))(*mine)
    assert torch.equal(got, run(*theirs))
    assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


def test_a_view_of_what_is_written_never_crosses_into_the_writing_part() -> None:
    def run(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
        views = [cache.t() for cache in rest[6:]]
        for weight, cache, view in zip(rest[:6], rest[6:], views, strict=True):
            cache.index_copy_(0, at, x)
            x = layer(x + view.sum(1), weight)
        return x

    with pytest.raises(SplitError, match="the same memory under another name"):
        stitched(traced(run, *cache_inputs()))


def test_what_one_part_made_another_does_not_write_to() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        total = x * 2
        for weight in rows:
            x = layer(x, weight)
            total.add_(x)
        return total

    with pytest.raises(SplitError, match="which another one made"):
        stitched(traced(run, torch.randn(3, K), *weights(6)))


def captured(function: Callable[..., Any], *inputs: Any) -> tuple[fx.GraphModule, list[Any]]:
    """The graph that Dynamo hands to a back end."""
    found: list[Any] = []

    def backend(gm: fx.GraphModule, given: list[Any]) -> Any:
        found.extend((gm, given))
        return gm

    torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    return found[0], found[1]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("within", [True, False])
def test_a_part_leaves_no_state_behind(within: bool) -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for number, weight in enumerate(rows):
            if within or number == 1:
                torch._C._set_grad_enabled(False)
            y = torch.tanh(x) * 2
            if within or number == 4:
                torch._C._set_grad_enabled(True)
            x = layer(x + y, weight)
        return x

    gm, inputs = captured(run, torch.randn(3, K), *weights(6))
    found = plan(gm, inputs)
    assert (found is not None) is within


def test_only_whole_copies_with_equal_shapes_repeat() -> None:
    x, rows = torch.randn(3, K), weights(6)
    rows[3] = rows[3].t()  # another layout in memory, for which other code would be compiled
    gm = traced(stack(6), x, *rows)
    calls = [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    assert max((repeat.count for repeat in find_repeats(calls, lambda node: signature(example(node)))), default=0) <= 3
    found = planned(gm)
    if found is not None:
        assert torch.equal(stitched(gm)(x, *rows)[0], stack(6)(x, *rows))
