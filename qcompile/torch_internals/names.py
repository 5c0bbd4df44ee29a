"""What the constants and modules of a captured graph are called in the user's model, however the code reached them.

Dynamo names a tensor by the way the traced code went to it: `L['self']._modules['layers']...`, or `L['args'][0]...` where forward
is wrapped, or from a layer on where a graph breaks. So the module that owns the tensor is looked up, by identity, in the model.
"""

import logging
import re
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, fx, nn

from qcompile.torch_internals import inputs
from qcompile.torch_internals.dynamo import OptimizedModule
from qcompile.torch_internals.private import private
from qcompile.torch_internals.tensors import parts_of

_Translator = private("torch._dynamo.symbolic_convert.InstructionTranslator", "layers have less exact names", essential=False)

log = logging.getLogger(__name__)

_STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|\.([A-Za-z_]\w*)")
_CONTAINERS = {"_modules", "_parameters", "_buffers", "__dict__"}

_calls = [
    private(f"torch.nn.Module.{name}", "layers have less exact names", essential=False)
    for name in ("_call_impl", "_wrapped_call_impl")
]
_CALLS = {call.__code__ for call in _calls if hasattr(call, "__code__")}

_lock = threading.Lock()
_given: list[weakref.ref[nn.Module]] = []  # the models that qcompile was given


def remember(model: Any) -> None:
    """Name what belongs to this model from its top on, also where a graph begins further down."""
    if not isinstance(model, nn.Module):
        return
    model = unwrapped(model)
    with _lock:
        living = [known for known in _given if known() is not None and known() is not model]
        _given[:] = [*living, weakref.ref(model)]


def given() -> list[nn.Module]:
    """The living models that qcompile was given, in this order."""
    with _lock:
        return [model for known in _given if (model := known()) is not None]


def path_of_source(name: str) -> str:
    """`L['self']._modules['layers']._modules['0']._buffers['w']` is `layers.0.w` in the user's model."""
    steps = _steps(name)
    if len(steps) > 1 and name.startswith("L["):
        steps = steps[1:]  # the local variable that holds the model
    return ".".join(steps)


def _steps(name: str) -> list[str]:
    found = [next(part for part in match.groups() if part is not None) for match in _STEP.finditer(name)]
    return [step for step in found if step not in _CONTAINERS]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a constant is in the user's model: its path, and that of the module that owns it."""

    path: str
    module: str

    def below(self, name: str) -> "Place":
        return Place(_joined(name, self.path), _joined(name, self.module))


def compiled_callers() -> list[nn.Module]:
    """The modules that were given to torch.compile and whose calls led here."""
    found: list[nn.Module] = []
    for module in _modules_on_the_stack(wrapped=True):
        if isinstance(module, OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None:
            found.append(unwrapped(module))
    return found


def outermost() -> int | None:
    """What tells the outermost model whose call led here from others, None if there is none."""
    found = _modules_on_the_stack()
    return id(found[-1]) if found else None


class Names:
    """Names for one graph, made while Dynamo still knows how it came about.

    A path begins at the outermost model that qcompile was given or whose call led here, else at the outermost one on Dynamo's way.
    """

    def __init__(self) -> None:
        self.scope = _scope()
        self.values: dict[Any, Any] = {}  # Dynamo's memory of what it looked up
        self.models = {id(model): model for model in (*given(), *_modules_on_the_stack())}
        self.inside: dict[int, dict[int, str]] = {}  # model -> module -> path in that model

    def of(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Place]:
        """Where these graph inputs are. If paths of several models would be equal, what the code calls each model comes first."""
        found = {node: self._found(node) for node in nodes}
        paths = [place.path for place, _, _ in found.values()]
        if len(set(paths)) == len(paths):
            return {node: place for node, (place, _, _) in found.items()}
        several = len({id(model) for _, model, _ in found.values()}) > 1
        return {node: place.below(variable) if several else place for node, (place, _, variable) in found.items()}

    def rename_modules(self, graph: fx.Graph) -> None:
        """Say where in the model each operator was traced, too."""
        inputs.rename_modules(graph, self._renamed)

    def _renamed(self, key: str, entry: Any) -> Any:
        names = [paths[int(key)] for paths in self.inside.values() if str(key).isdigit() and int(key) in paths]
        return (max(names, key=_depth), *entry[1:]) if names else entry

    def _found(self, node: fx.Node) -> tuple[Place, nn.Module | None, str]:
        """(where a graph input is, the model it belongs to, what the code calls that model)"""
        source = inputs.source_of(node)
        text = _text(source)
        way = list(self._way(source))
        chain = [(place, unwrapped(value)) for place, value in way if isinstance(value, nn.Module)]
        if chain:
            place, owner = chain[0]
            rest = _steps(text.removeprefix(place))
            # What hangs on a tensor (a quantized weight's parts) belongs to what owns the tensor.
            holder = next(
                (tensor for tensor, value in reversed(way) if isinstance(value, Tensor) and tensor.startswith(place)), text
            )
            inside = _steps(holder.removeprefix(place))[:-1] if any(owner.children()) else []
            outermost_first = {id(module): module for _, module in reversed(chain)}
            for models in (self.models, outermost_first):
                paths = [(path, model) for model in models.values() if (path := self._path(model, owner)) is not None]
                if paths:
                    path, model = max(paths, key=lambda item: _depth(item[0]))
                    variable = next((steps[-1] for place, module in chain if module is model and (steps := _steps(place))), "")
                    return Place(_joined(path, *rest), _joined(path, *inside)), model, variable
        steps = _steps(text)
        path = ".".join(steps) if self.scope is not None and steps[:1] != ["self"] else path_of_source(text)
        path = path or node.name
        return Place(path, path.rpartition(".")[0]), None, ""

    def _way(self, source: Any) -> Iterator[tuple[str, Any]]:
        """What the code went through to get to a value, the last first."""
        while (source := getattr(source, "base", None)) is not None:
            yield _text(source), self._value(source)

    def _value(self, source: Any) -> Any:
        if self.scope is None:
            return None
        try:
            return source.get_value(*self.scope, self.values)
        except Exception:  # what Dynamo made up has no value outside
            return None

    def _path(self, model: nn.Module, module: nn.Module) -> str | None:
        """The path of `module` in `model`, "" for the model itself, None if it is not in there."""
        if id(model) not in self.inside:
            self.inside[id(model)] = {id(item): path_without_wrappers(name) for name, item in model.named_modules()}
        return self.inside[id(model)].get(id(module))


def tensors_of(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    """All parameters and buffers of a model, and the parts of quantized ones; what has several paths has the first one."""
    for module_name, module in model.named_modules():
        path = path_without_wrappers(module_name)
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield Place(_joined(path, name), path), tensor
            for part, inner in parts_of(tensor):
                yield Place(_joined(path, name, part), path), inner


def places_now() -> dict[int, Place]:
    """Tensor (by id) -> its place, for the models that qcompile was given and those whose call led here."""
    found: dict[int, Place] = {}
    for model in (*given(), *_modules_on_the_stack()):
        for place, tensor in tensors_of(model):
            known = found.setdefault(id(tensor), place)
            if place.path.count(".") > known.path.count("."):
                found[id(tensor)] = place
    return found


def _depth(path: str) -> int:
    return len(path.split(".")) if path else 0


def _joined(*paths: str) -> str:
    return ".".join(path for path in paths if path)


def _text(source: Any) -> str:
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def path_without_wrappers(path: str) -> str:
    """A module's path in the model that was compiled."""
    return ".".join(step for step in path.split(".") if step != "_orig_mod")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, for torch.compile's wrapper around it."""
    while isinstance(module, OptimizedModule):
        inner = module._orig_mod
        assert isinstance(inner, nn.Module)
        module = inner
    return module


def _scope() -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Global and local variables as Dynamo's sources name them: G[...] and L[...]."""
    try:
        output = _Translator.current_tx().output
        return {**output.global_scope, "G": output.global_scope}, {"L": output.local_scope, "G": output.global_scope}
    except Exception:  # no compilation of Dynamo's, or one of another make
        log.debug("no variables to look modules up in", exc_info=True)
        return None


def _modules_on_the_stack(wrapped: bool = False) -> list[nn.Module]:
    """The modules whose calls led here, the innermost first; with torch.compile's wrappers if `wrapped`."""
    found: list[nn.Module] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in _CALLS and isinstance(module := frame.f_locals.get("self"), nn.Module):
            found.append(module if wrapped else unwrapped(module))
        frame = frame.f_back
    return found
