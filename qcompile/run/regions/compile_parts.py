"""Compiles a graph part by part: each module of a plan once, for all layers whose weights that code proves to fit."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, fx

from qcompile.errors import UnservedError
from qcompile.graph import fake
from qcompile.graph.nodes import Constant
from qcompile.reporting.rows import SiteReport
from qcompile.run.regions.cut import Part, Plan
from qcompile.run.regions.renaming import Renaming
from qcompile.run.regions.stitch import Compiled, stitch
from qcompile.torch_internals.aot import mode_of_this_compilation
from qcompile.torch_internals.inputs import example
from qcompile.torch_internals.tensors import parts_of, storage_key

log = logging.getLogger(__name__)


class SplitError(Exception):
    """The graph has to be compiled in one piece after all; the message says why."""


class Region(Compiled, Protocol):
    """A compiled module.

    rows    the decisions about it
    writes  numbers of the inputs that it writes to
    folded  numbers of the inputs whose content became a part of it
    by_value  whether a decision to leave a layer alone came from what its constants hold
    """

    @property
    def rows(self) -> Sequence[SiteReport]: ...
    @property
    def writes(self) -> Sequence[int]: ...
    @property
    def folded(self) -> Sequence[int]: ...
    @property
    def by_value(self) -> bool: ...

    def constants(self, given: Mapping[int, Constant]) -> list[Constant]:
        """What it folded, looked up among these constant inputs."""
        ...

    def settle(self, given: Mapping[int, Constant]) -> None:
        """The graph is compiled in parts for good; raw weights may be released. given: the constants it was compiled with."""
        ...

    def adopt(self, given: Mapping[int, Constant]) -> str:
        """Serve another layer with these constant inputs, too; or the reason why this code does not fit them."""
        ...


# (module, example inputs, its constant inputs by number, numbers of inputs that other parts read, too) -> what was compiled
Compile = Callable[[fx.GraphModule, list[Any], dict[int, Constant], set[int]], Region]


@dataclass(frozen=True, slots=True)
class Built:
    """A whole graph, compiled in parts: what to call, the decisions, and how many parts have code of their own.

    written: numbers of the graph's inputs that are written to; None if it cannot be run a second time with those put back.
    """

    call: Callable[..., Any]
    rows: list[SiteReport]
    compiled: int
    written: list[int] | None


def build(
    gm: fx.GraphModule, inputs: Sequence[Any], plan: Plan, constants: Mapping[fx.Node, Constant], compile_module: Compile
) -> Built:
    """Compile the modules of `plan`; SplitError if what comes out could differ from the graph in one piece.

    inputs: the graph's example inputs; constants: those of its inputs that are constants.
    """
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    outputs = next(iter(gm.graph.find_nodes(op="output"))).args[0]
    assert isinstance(outputs, list | tuple)
    builder = _Builder(plan, dict(zip(placeholders, inputs, strict=True)), constants, compile_module)
    builder.run()
    regions = [builder.regions[part] for part in plan.parts]
    written = {part.inputs[number] for part, region in builder.regions.items() for number in region.writes}
    numbers = [number for number, node in enumerate(placeholders) if node in written]
    repeatable = all(getattr(region, "repeatable", False) for region in regions)
    call = stitch(placeholders, plan, outputs, regions)
    return Built(call, builder.rows, len(set(regions)), numbers if repeatable else None)


class _Builder:
    def __init__(
        self, plan: Plan, given: Mapping[fx.Node, Any], constants: Mapping[fx.Node, Constant], compile_module: Compile
    ) -> None:
        self.plan, self.given, self.constants, self.compile_module = plan, given, constants, compile_module
        readers = Counter(node for part in plan.parts for node in set(part.inputs))
        self.shared = {node for node, count in readers.items() if count > 1}
        self.regions: dict[Part, Region] = {}
        self.rows: list[SiteReport] = []
        self.unserved: list[str] = []

    def run(self) -> None:
        """First one copy of each module, with nothing released, so that the graph can still be compiled whole; then all others."""
        firsts: list[tuple[Region, Part, list[Part], fx.Graph]] = []
        for number, module in enumerate(self.plan.modules):
            first, *others = (part for part in self.plan.parts if part.module == number)
            pristine = copy.deepcopy(module.graph) if others else module.graph  # compiling takes the module's own apart
            try:
                region = self._compiled(module, first)
            except UnservedError as error:
                for part in (first, *others):
                    names = Renaming.of(self._pairs(first, part))
                    self.unserved += [names(line) for line in error.lines]
                continue
            if others and region.by_value:
                raise SplitError("whether a layer is quantized depends on what its constants hold")
            self.regions.update(dict.fromkeys(others, region))
            firsts.append((region, first, others, pristine))
        if self.unserved:
            raise UnservedError(self.unserved)
        self._check_writes()
        rows: dict[Part, list[SiteReport]] = {}
        for region, first, others, pristine in firsts:
            region.settle(self._constants(first))
            rows[first] = list(region.rows)
            for part in others:
                rows[part] = self._adopted(region, first, part, pristine)
        self.rows = [row for part in self.plan.parts for row in rows[part]]

    def _adopted(self, region: Region, first: Part, part: Part, pristine: fx.Graph) -> list[SiteReport]:
        """Let `part` run the code of `first`, or compile it on its own; the decisions about it."""
        problem = region.adopt(self._constants(part))
        if not problem:
            return self._rows(region, first, part)
        log.info("a layer gets code of its own: %s", problem)
        own = self._compiled(fx.GraphModule(self.plan.modules[first.module], copy.deepcopy(pristine)), part)
        own.settle(self._constants(part))
        return list(own.rows)

    def _compiled(self, module: fx.GraphModule, part: Part) -> Region:
        shared = {number for number, node in enumerate(part.inputs) if node in self.shared}
        region = self.compile_module(module, self._examples(part), self._constants(part), shared)
        self.regions[part] = region
        return region

    def _constants(self, part: Part) -> dict[int, Constant]:
        return {number: self.constants[node] for number, node in enumerate(part.inputs) if node in self.constants}

    def _pairs(self, first: Part, part: Part) -> list[tuple[Constant, Constant]]:
        mine, theirs = self._constants(first), self._constants(part)
        return [(mine[number], theirs[number]) for number in mine if number in theirs]

    def _rows(self, region: Region, first: Part, part: Part) -> list[SiteReport]:
        """The decisions about `first` as those about an equal part."""
        folded = zip(region.constants(self._constants(first)), region.constants(self._constants(part)), strict=True)
        pairs = [*self._pairs(first, part), *folded]
        names = Renaming.of(pairs)
        same: dict[Hashable, Hashable] = {id(mine.tensor): id(theirs.tensor) for mine, theirs in pairs}
        for mine, theirs in pairs:
            inner = zip(parts_of(mine.tensor), parts_of(theirs.tensor), strict=True)
            same.update((id(left), id(right)) for (_, left), (_, right) in inner)
        return [replace(row, module=names(row.module), identity=same.get(row.identity, row.identity)) for row in region.rows]

    def _examples(self, part: Part) -> list[Any]:
        """Example inputs: those of the graph where it has one, fake ones of the right looks for what other parts make."""
        found: list[Any] = []
        for number, node in enumerate(part.inputs):
            item = self.given.get(node)
            again = node in part.inputs[:number]
            if again and node in self.constants:
                raise SplitError(f"{node.name} is two inputs of one region, and other regions read two tensors there")
            found.append(_imitation(example(node)) if item is None or (again and isinstance(item, Tensor)) else item)
        return found

    def _check_writes(self) -> None:
        """What a region writes to has to be an input of the whole graph, under one name, and no constant of another region."""
        written: dict[fx.Node, Part] = {}
        for part, region in self.regions.items():
            for number in region.writes:
                node = part.inputs[number]
                if node.op != "placeholder":
                    raise SplitError(f"a region writes to {node.name}, which another one made")
                others = [item for place, item in enumerate(part.inputs) if place != number]
                if any(item is node or _same_memory(item, node) for item in others):
                    raise SplitError(f"a region writes to {node.name} and reads the same memory under another name")
                written[node] = part
        for part, region in self.regions.items():
            for number in region.folded:
                if part.inputs[number] in written:
                    raise SplitError(f"the constant {part.inputs[number].name} of one region is written to by another")


def _imitation(item: Any) -> Any:
    """A fake tensor of these sizes, strides and dtype in the mode that this compilation traces with."""
    if not isinstance(item, Tensor):
        return item
    if not fake.is_fake(item):
        raise SplitError(f"a {type(item).__name__} would cross from one region into another")
    with mode_of_this_compilation() or fake.mode_of([item]):
        return fake.imitation(item)


def _same_memory(left: fx.Node, right: fx.Node) -> bool:
    one, other = example(left), example(right)
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and storage_key(one) == storage_key(other)
