"""Writes the function that calls the parts of a plan in turn.

What a part packed is a constant of it, and each of them would look at every call whether its raw weights are still the same. So
there are two functions: one that asks about all weights of the graph at once and then calls compiled code with what was packed, and
one that leaves it to each part, for weights that a part's packed form does not cover.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qcompile.errors import GeneratedCodeError
from qcompile.run.regions.cut import Part, Plan
from qcompile.run.regions.defined import undefined
from qcompile.run.runner import Runner
from qcompile.torch_internals.aot_wrapper import Duties, mark_dynamic, without_gradients
from qcompile.torch_internals.inductor import without_bookkeeping
from qcompile.weights.derived import Derived, Entry

Boxed = Callable[[list[Any]], Sequence[Any]]


class Compiled(Protocol):
    """A module's code. call takes a list of its inputs, which it empties; runner: what call is, if it packs and is nothing else.

    A region that is called without AOTAutograd's wrapper has `duties`, too: what is then left to do around it.
    """

    @property
    def call(self) -> Boxed: ...
    @property
    def runner(self) -> Runner | None: ...


Ready = Entry[tuple[list[Tensor], ...]]  # what was packed for each part from one set of raw weights


class _Weights:
    """All raw weights of a graph, and what its parts packed from them; one set for each model that runs this code."""

    def __init__(self, plan: Plan, regions: Sequence[Compiled]) -> None:
        self.readers: list[tuple[Runner, list[fx.Node]]] = []
        for part, region in zip(plan.parts, regions, strict=True):
            if region.runner is not None and region.runner.positions:
                self.readers.append((region.runner, [part.inputs[place] for place in region.runner.positions]))
        self.nodes = list(dict.fromkeys(node for _, nodes in self.readers for node in nodes))
        self.ready: Derived[tuple[list[Tensor], ...]] = Derived()

    def prepare(self, raw: Sequence[Tensor]) -> Ready | None:
        """What the parts packed from these weights, packed again where one changed; None if a part has to run unpacked."""
        values = dict(zip(self.nodes, raw, strict=True))
        found = [runner.weights_of([values[node] for node in nodes]) for runner, nodes in self.readers]
        self.ready.drop(raw)
        if any(weights.problem for weights in found):
            return None
        return self.ready.put(raw, tuple(weights.tensors for weights in found))


@dataclass(frozen=True, slots=True)
class Around:
    """What is left to do around the calls of a whole graph: inputs that are written to, results whose sizes change."""

    written: tuple[fx.Node, ...]
    dynamic: Mapping[fx.Node, frozenset[int]]

    @staticmethod
    def of(plan: Plan, regions: Sequence[Compiled]) -> "Around | None":
        written: dict[fx.Node, None] = {}
        dynamic: dict[fx.Node, frozenset[int]] = {}
        todo: list[tuple[Part, Duties | None]] = [
            (part, getattr(region, "duties", None)) for part, region in zip(plan.parts, regions, strict=True)
        ]
        for part, duties in todo:
            if duties is not None:
                written.update((part.inputs[number], None) for number in duties.written)
                dynamic.update((part.outputs[number], dims) for number, dims in duties.dynamic)
        return None if all(duties is None for _, duties in todo) else Around(tuple(written), dynamic)


def stitch(placeholders: Sequence[fx.Node], plan: Plan, outputs: Sequence[Any], regions: Sequence[Compiled]) -> Callable[..., Any]:
    """A function of the graph's inputs that returns the tuple of its outputs; regions: the code of each part."""
    weights = _Weights(plan, regions)
    around = Around.of(plan, regions)
    names: dict[str, Any] = {
        "ready": weights.ready.entries,
        "prepare": weights.prepare,
        "gradients": torch.is_grad_enabled,
        "without_gradients": without_gradients,
        "written": torch.autograd.graph.increment_version,
        "dynamic": mark_dynamic,
    }

    def enter(name: str, code: Boxed) -> None:
        names[name] = without_bookkeeping(code, lambda lean: names.update({name: lean}))

    unique = list(dict.fromkeys(regions))
    for number, region in enumerate(unique):
        enter(f"region_{number}", region.call)
        if region.runner is not None:
            enter(f"code_{number}", region.runner.code)
    numbers = [unique.index(region) for region in regions]
    careful = [Step(f"region_{number}") for number in numbers]
    quick = [
        step if region.runner is None else Step(f"code_{number}", region.runner.kept, packs=bool(region.runner.positions))
        for step, number, region in zip(careful, numbers, regions, strict=True)
    ]
    text = source("careful", placeholders, plan, outputs, careful, around=around)
    text += source("call", placeholders, plan, outputs, quick, weights.nodes, around)
    if missing := undefined(text, names):
        raise GeneratedCodeError(missing)
    exec(compile(text, "<regions>", "exec"), names)  # our own text, straight calls
    call: Callable[..., Any] = names["call"]
    return call


@dataclass(frozen=True, slots=True)
class Step:
    """How one part is called: the function's name, the numbers of the inputs it takes (None: all), and whether it packed weights,
    which come behind those inputs."""

    name: str
    kept: tuple[int, ...] | None = None
    packs: bool = False


def source(
    name: str,
    placeholders: Sequence[fx.Node],
    plan: Plan,
    outputs: Sequence[Any],
    steps: Sequence[Step],
    weights: Sequence[fx.Node] = (),
    around: Around | None = None,
) -> str:
    """The text of a function of the graph's inputs that takes these steps; weights: the raw ones it asks about first.

    around: what it does beside the calls, None for calls that do everything themselves.

    Every value is let go before the last call that reads it, so that the call can free it.
    """
    names = {node: f"a{number}" for number, node in enumerate(placeholders)}
    given = ", ".join(names.values())
    lines = [f"def {name}({given}):"]
    if around is not None:
        lines += ["    if gradients():", f"        return without_gradients({', '.join([name, *names.values()])})"]
    if weights:
        lines += [
            f"    raw = ({', '.join(names[node] for node in weights)},)",
            "    found = ready.get(tuple(map(id, raw)))",
            "    if found is None or not found.snapshot.unchanged(raw):",
            "        found = prepare(raw)",
            "        if found is None:",
            f"            return careful({given})",
            "    del raw",
        ]
    if around is not None and around.written:
        lines.append(f"    written(({', '.join(names[node] for node in around.written)},))")
    last = {node: number for number, part in enumerate(plan.parts) for node in part.inputs}
    last.update({node: len(plan.parts) for node in outputs if isinstance(node, fx.Node)})
    unused = [names[node] for node in placeholders if node not in last]
    lines += [f"    del {', '.join(unused)}"] if unused else []
    packed = 0
    for number, (part, step) in enumerate(zip(plan.parts, steps, strict=True)):
        names.update({node: f"v{len(names) + index}" for index, node in enumerate(part.outputs)})
        taken = part.inputs if step.kept is None else [part.inputs[place] for place in step.kept]
        box = [names[node] for node in taken]
        if step.packs:
            box.append(f"*found.value[{packed}]")
            packed += 1
        lines.append(f"    box = [{', '.join(box)}]")
        done = dict.fromkeys(names[node] for node in part.inputs if last[node] == number)
        lines += [f"    del {', '.join(done)}"] if done else []
        made = ", ".join(names[node] if node in last else "_" for node in part.outputs)
        lines.append(f"    {made}{', = ' if made else ''}{step.name}(box)")
    for node, dims in around.dynamic.items() if around is not None else ():
        if node in outputs:
            lines.append(f"    dynamic({names[node]}, {sorted(dims)})")
    results = ", ".join(names[item] if isinstance(item, fx.Node) else repr(item) for item in outputs)
    return "\n".join([*lines, f"    return ({results}{',' if results else ''})", "", ""])
