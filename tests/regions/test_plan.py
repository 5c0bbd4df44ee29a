"""What repeats is found, cut out once, and called in turn; the calls compute what the graph computed, writes to inputs included."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from qcompile.graph import value
from qcompile.regions import compile_parts, plan
from qcompile.regions.repeats import LEAST_SAVED, find_repeats
from qcompile.regions.stitch import source

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


def boxed(module: fx.GraphModule, _examples: list[Any], _static: list[int]) -> Callable[[list[Any]], Any]:
    def call(args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return module(*given)

    return call


def stitched(gm: fx.GraphModule) -> Callable[[list[Any]], Any]:
    found = plan(gm)
    assert found is not None
    function: Callable[[list[Any]], Any] = compile_parts(
        gm, found, [value(node) for node in gm.graph.find_nodes(op="placeholder")], [], boxed
    )
    return function


def test_equal_layers_are_one_module() -> None:
    found = plan(traced(stack(6), torch.randn(3, K), *weights(6)))
    assert found is not None
    assert [repeat.count for repeat in found.repeats] == [5]  # cut behind a product: half a layer before, half behind
    assert [part.module for part in found.parts] == [0, 1, 1, 1, 1, 1, 2]
    assert str(found) == f"5 regions of {2 * OPS + 2} nodes"


def test_a_cut_lies_behind_a_product() -> None:
    found = plan(traced(stack(6), torch.randn(3, K), *weights(6)))
    assert found is not None
    for part in found.parts[:-1]:
        assert [str(node.target) for node in part.outputs].count("aten.mm.default") == 1


def test_the_calls_compute_what_the_graph_does() -> None:
    x, rows = torch.randn(3, K), weights(6)
    gm = traced(stack(6), x, *rows)
    args = [x, *rows]
    (got,) = stitched(gm)(args)
    assert args == []
    assert torch.equal(got, stack(6)(x, *rows))


def test_values_are_let_go_before_their_last_reader_runs() -> None:
    gm = traced(stack(6), torch.randn(3, K), *weights(6))
    found = plan(gm)
    assert found is not None
    output = next(iter(gm.graph.find_nodes(op="output"))).args[0]
    assert isinstance(output, list | tuple)
    lines = source(list(gm.graph.find_nodes(op="placeholder")), found, output).splitlines()
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
    found = plan(gm)
    assert found is not None and sum(repeat.count for repeat in found.repeats) < 8
    assert torch.equal(stitched(gm)([x, *rows])[0], run(x, *rows))


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
    found = plan(gm)
    assert found is not None and found.repeats[0].period == 2 * (2 * OPS + 2)  # two layers are one copy
    assert torch.equal(stitched(gm)([x, *rows])[0], run(x, *rows))


def test_two_places_of_one_copy_may_read_one_node_where_others_read_two() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        first = x
        for weight in rows:
            x = layer(x, weight) + first
        return x

    x, rows = torch.randn(3, K), weights(6)
    assert torch.equal(stitched(traced(run, x, *rows))([x, *rows])[0], run(x, *rows))


def test_two_stacks_are_two_repeats() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for weight in rows[:5]:
            x = layer(x, weight)
        for weight in rows[5:]:
            x = torch.relu(layer(torch.tanh(-x), weight))
        return x

    x, rows = torch.randn(3, K), weights(10)
    gm = traced(run, x, *rows)
    found = plan(gm)
    assert found is not None and len(found.repeats) == 2
    assert torch.equal(stitched(gm)([x, *rows])[0], run(x, *rows))


def test_few_nodes_are_not_worth_it() -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        for weight in rows:
            x = torch.mm(x, weight)
        return x

    assert plan(traced(run, torch.randn(3, K), *weights(LEAST_SAVED // 2))) is None


def test_symbolic_sizes_are_given_to_every_module() -> None:
    rows = weights(6)
    gm = traced(stack(6), torch.randn(3, K), *rows, symbolic=True)
    found = plan(gm)
    if found is None:  # sizes that no graph input is: tracing by hand gives none, AOTAutograd does
        assert not any(isinstance(value(node), torch.SymInt) for node in gm.graph.find_nodes(op="placeholder"))
        return
    x = torch.randn(7, K)
    assert torch.equal(stitched(gm)([x, *rows])[0], stack(6)(x, *rows))


def cached(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
    """Layers that keep what they computed in a cache, as AOTAutograd spells it: all writes at the end."""
    half = len(rest) // 2
    written = []
    for weight, cache in zip(rest[:half], rest[half:], strict=True):
        kept = torch.ops.aten.index_put(cache, [at], x)
        x = layer(x, weight) + kept.sum(0)
        written.append((cache, kept))
    for cache, kept in written:
        torch.ops.aten.copy_(cache, kept)
    return x


def cache_inputs() -> list[Tensor]:
    return [torch.randn(2, K), torch.tensor([1, 4]), *weights(6), *(torch.randn(5, K) for _ in range(6))]


def test_writes_to_inputs_go_into_their_layer() -> None:
    given = cache_inputs()
    gm = traced(cached, *given)
    found = plan(gm)
    assert found is not None and found.repeats[0].count >= 5
    (region,) = {part.module for part in found.parts if [part.module for part in found.parts].count(part.module) > 1}
    names = [str(node.target) for node in found.modules[region].graph.nodes]
    assert names.count("aten.copy_.default") == 1 and names[-2:] == ["aten.copy_.default", "output"]
    mine, theirs = [item.clone() for item in given], [item.clone() for item in given]
    (got,) = stitched(gm)(list(mine))
    assert torch.equal(got, cached(*theirs))
    assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


def test_a_write_stays_last_if_the_content_before_is_read_later() -> None:
    def run(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
        total: list[tuple[Tensor, Tensor]] = []
        y = cached_without_writes(x, at, rest, total)
        before = rest[6].sum(0)  # reads what the first cache held, after the last layer
        for cache, kept in total:
            torch.ops.aten.copy_(cache, kept)
        return y + before

    def cached_without_writes(x: Tensor, at: Tensor, rest: tuple[Tensor, ...], written: list[tuple[Tensor, Tensor]]) -> Tensor:
        for weight, cache in zip(rest[:6], rest[6:], strict=True):
            kept = torch.ops.aten.index_put(cache, [at], x)
            x = layer(x, weight) + kept.sum(0)
            written.append((cache, kept))
        return x

    given = cache_inputs()
    mine, theirs = [item.clone() for item in given], [item.clone() for item in given]
    (got,) = stitched(traced(run, *given))(list(mine))
    assert torch.equal(got, run(*theirs))
    assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


def test_a_view_of_what_is_written_never_crosses_into_the_writing_part() -> None:
    def run(x: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
        views = [cache.t() for cache in rest[6:]]
        written = []
        for weight, cache, view in zip(rest[:6], rest[6:], views, strict=True):
            kept = torch.ops.aten.index_put(cache, [at], x)
            x = layer(x, weight) + kept.sum(0) + view.sum(1)
            written.append((cache, kept))
        for cache, kept in written:
            torch.ops.aten.copy_(cache, kept)
        return x

    assert plan(traced(run, *cache_inputs())) is None


@pytest.mark.parametrize("function", [torch.rand_like, lambda x: torch.nn.functional.dropout(x, 0.5)])
def test_random_numbers_keep_the_graph_in_one_piece(function: Callable[[Tensor], Tensor]) -> None:
    def run(x: Tensor, *rows: Tensor) -> Tensor:
        return function(stack(6)(x, *rows))

    assert plan(traced(run, torch.randn(3, K), *weights(6))) is None


def test_only_whole_copies_with_equal_shapes_repeat() -> None:
    x, rows = torch.randn(3, K), weights(6)
    rows[3] = rows[3].t()  # another layout in memory, for which other code would be compiled
    gm = traced(stack(6), x, *rows)
    calls = [node for node in gm.graph.nodes if node.op not in {"placeholder", "output"}]
    assert max((repeat.count for repeat in find_repeats(calls)), default=0) <= 3
    found = plan(gm)
    if found is not None:
        assert torch.equal(stitched(gm)([x, *rows])[0], stack(6)(x, *rows))
