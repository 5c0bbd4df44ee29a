"""Writes the function that calls the parts of a plan in turn."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from qcompile.bookkeeping import without_bookkeeping
from qcompile.regions.segments import Plan

Boxed = Callable[[list[Any]], Sequence[Any]]


def stitch(
    placeholders: Sequence[fx.Node], plan: Plan, outputs: Sequence[Any], functions: Sequence[Boxed], numbers: Sequence[int]
) -> Callable[..., Any]:
    """A function of the graph's inputs that returns the tuple of its outputs.

    functions: each takes a list of its inputs, which it empties, and returns a list or tuple; numbers: which one each part calls.
    """
    names: dict[str, Any] = {}
    for number, function in enumerate(functions):
        name = f"region_{number}"
        names[name] = without_bookkeeping(function, lambda lean, name=name: names.update({name: lean}))  # type: ignore[misc]
    text = source(placeholders, plan, outputs, numbers)
    exec(compile(text, "<regions>", "exec"), names)  # our own text, straight calls
    call: Callable[..., Any] = names["call"]
    return call


def source(placeholders: Sequence[fx.Node], plan: Plan, outputs: Sequence[Any], numbers: Sequence[int]) -> str:
    """The text of `call`. Every value is let go before the last call that reads it, so that the call can free it."""
    name = {node: f"a{number}" for number, node in enumerate(placeholders)}
    last = {node: number for number, part in enumerate(plan.parts) for node in part.inputs}
    last.update({node: len(plan.parts) for node in outputs if isinstance(node, fx.Node)})
    lines = [f"def call({', '.join(name.values())}):"]
    unused = [name[node] for node in placeholders if node not in last]
    lines += [f"    del {', '.join(unused)}"] if unused else []
    for number, part in enumerate(plan.parts):
        name.update({node: f"v{len(name) + index}" for index, node in enumerate(part.outputs)})
        lines.append(f"    box = [{', '.join(name[node] for node in part.inputs)}]")
        done = dict.fromkeys(name[node] for node in part.inputs if last[node] == number)
        lines += [f"    del {', '.join(done)}"] if done else []
        made = ", ".join(name[node] if node in last else "_" for node in part.outputs)
        lines.append(f"    {made}{', = ' if made else ''}region_{numbers[number]}(box)")
    results = ", ".join(name[item] if isinstance(item, fx.Node) else repr(item) for item in outputs)
    return "\n".join([*lines, f"    return ({results}{',' if results else ''})", ""])
