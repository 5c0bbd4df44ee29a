"""Compiles each module of a plan once and writes the function that calls them in turn."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch._guards import TracingContext

from qcompile.graph import value
from qcompile.regions.segments import Plan

Compile = Callable[[fx.GraphModule, list[Any], list[int]], Callable[[list[Any]], Sequence[Any]]]


def compile_parts(gm: fx.GraphModule, plan: Plan, inputs: Sequence[Any], static: Sequence[int], compile_module: Compile) -> Any:
    """A function of a list of the graph's inputs, which it empties, that returns the list of its outputs.

    inputs: the graph's example inputs; static: positions of those that keep their address from call to call;
    compile_module(module, example inputs, static positions) compiles one module.
    """
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    examples = dict(zip(placeholders, inputs, strict=True))
    fixed = {placeholders[index] for index in static}
    called = []
    for number, module in enumerate(plan.modules):
        rows = [part.inputs for part in plan.parts if part.module == number]
        given = [examples.get(node, value(node)) for node in rows[0]]
        kept = [index for index in range(len(given)) if all(row[index] in fixed for row in rows)]
        # Each module reports its outputs' strides to the context it is compiled in, which takes one report.
        with TracingContext.report_output_strides():
            called.append(compile_module(module, given, kept))
    outputs = next(iter(gm.graph.find_nodes(op="output"))).args[0]
    assert isinstance(outputs, list | tuple)
    context = TracingContext.try_get()
    if context is not None and context.output_strides is not None:
        context.output_strides.extend(_strides(node) for node in outputs)
    names: dict[str, Any] = {}
    for number, function in enumerate(called):
        _enter(names, f"module_{number}", function)
    exec(compile(source(placeholders, plan, outputs), "<regions>", "exec"), names)  # our own text, straight calls
    function = names["call"]
    function._boxed_call = True
    return function


def _strides(node: Any) -> tuple[Any, ...] | None:
    """A graph output's strides, None for what is no tensor."""
    item = value(node) if isinstance(node, fx.Node) else None
    return tuple(item.stride()) if isinstance(item, Tensor) else None


def _enter(names: dict[str, Any], name: str, compiled: Any) -> None:
    """names[name] becomes the compiled module; after its first call, which Inductor has to see, without Inductor's bookkeeping.

    That bookkeeping takes some 20 microseconds a call: more than the rest of the Python code of a layer's decode step.
    """

    def first(args: list[Any]) -> Sequence[Any]:
        results: Sequence[Any] = compiled(args)
        names[name] = getattr(compiled, "current_callable", None) or compiled
        return results

    names[name] = first


def source(placeholders: Sequence[fx.Node], plan: Plan, outputs: Sequence[Any]) -> str:
    """The text of `call(args)`. Every value is let go before the last call that reads it, so that the call can free it."""
    name = {node: f"a{number}" for number, node in enumerate(placeholders)}
    last = {node: number for number, part in enumerate(plan.parts) for node in part.inputs}
    last.update({node: len(plan.parts) for node in outputs if isinstance(node, fx.Node)})
    lines = ["def call(args):"]
    if placeholders:
        lines += [f"    {', '.join(name[node] for node in placeholders)}, = args", "    args.clear()"]
    unused = [name[node] for node in placeholders if node not in last]
    lines += [f"    del {', '.join(unused)}"] if unused else []
    for number, part in enumerate(plan.parts):
        name.update({node: f"v{len(name) + index}" for index, node in enumerate(part.outputs)})
        lines.append(f"    box = [{', '.join(name[node] for node in part.inputs)}]")
        done = dict.fromkeys(name[node] for node in part.inputs if last[node] == number)
        lines += [f"    del {', '.join(done)}"] if done else []
        made = ", ".join(name[node] if node in last else "_" for node in part.outputs)
        lines.append(f"    {made}{', = ' if made else ''}module_{part.module}(box)")
    results = ", ".join(name[item] if isinstance(item, fx.Node) else repr(item) for item in outputs)
    return "\n".join([*lines, f"    return [{results}]", ""])
