"""Who imports whom: no circle, no arrow upwards, and torch's private side behind one wall."""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import networkx
import pytest

import qcompile

Graph = Any  # a directed graph of names
ROOT = Path(__file__).parent.parent
# Who may say private names of torch.
ROOM, FAKES = "qcompile.torch_internals", "qcompile.graph.fake"
# What Dynamo and AOTAutograd write on nodes, and attributes of tensors and modules that torch keeps for itself.
KEYS = frozenset(["grapharg", "tensor_dict", "_dynamo_static_input_type", "example_value", "nn_module_stack", "desc"])
ATTRIBUTES = frozenset(["_version", "_cdata", "fake_mode", "_orig_mod", "__tensor_flatten__", "_compiled_call_impl"])
# Private by their spelling alone.
PUBLIC = frozenset(["torch.__version__", "torch.ops.qcompile._build_version"])
TRANSFORMERS = ("transformers.core_model_loading", "transformers.conversion_mapping", "transformers.quantizers")


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Module -> its file and syntax tree."""
    files = [path for path in (ROOT / "qcompile").rglob("*.py") if "passes" not in path.parts[len(ROOT.parts) :]]
    found: dict[str, tuple[Path, ast.Module]] = {}
    for path in (*files, *(ROOT / "passes").glob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = ("qcompile", *parts) if parts[0] == "passes" else parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path, ast.parse(path.read_text())
    return found


@cache
def imports() -> Graph:
    """Arrows from each module to those of ours that it imports, inside functions, too."""
    arrows: Graph = networkx.DiGraph()
    for module, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{item.name}" for item in node.names]
                targets = [name if name in sources() else node.module for name in inner]
            elif isinstance(node, ast.Import):
                targets = [item.name for item in node.names]
            else:
                continue
            arrows.add_edges_from((module, target) for target in targets if target in sources() and target != module)
    return arrows


def room(module: str) -> str:
    """The folder or file directly in the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


@cache
def rooms() -> Graph:
    """Arrows between rooms; the package itself and `python -m qcompile` stand above all of them."""
    arrows: Graph = networkx.DiGraph()
    arrows.add_edges_from((room(a), room(b)) for a, b in imports().edges if room(a) != room(b))
    arrows.remove_nodes_from(["qcompile", "__main__"])
    return arrows


def floors() -> dict[str, int]:
    """Room -> floor, by the table of the architecture page."""
    lines = re.findall(r"^\| (\d) \| (.*) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    return {name: int(floor) for floor, names in lines for name in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize("arrows", [imports, rooms])
def test_there_is_no_circle(arrows: Callable[[], Graph]) -> None:
    assert [sorted(circle) for circle in networkx.strongly_connected_components(arrows()) if len(circle) > 1] == []


def test_every_room_has_its_floor() -> None:
    assert set(rooms().nodes) == set(floors())


def test_no_import_goes_upwards() -> None:
    known = floors()
    assert [(a, b) for a, b in rooms().edges if known[a] < known[b]] == []


def test_what_is_private_in_torch_stands_in_one_room() -> None:
    outside = {name: entry for name, entry in sources().items() if room(name) != "torch_internals" and name != FAKES}
    assert [f"{path.relative_to(ROOT)}:{line}: {what}" for path, tree in outside.values() for line, what in said(tree)] == []


def test_the_room_looks_private_names_up() -> None:
    """An import statement would raise where the name is gone."""
    inside = {name: entry for name, entry in sources().items() if room(name) == "torch_internals" or name == FAKES}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in inside.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and any(is_private(name) for name in imported(node))
    ]
    assert found == []


def test_what_is_private_in_transformers_stands_in_one_file() -> None:
    found = {
        name
        for name, (_, tree) in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and any(item.startswith(TRANSFORMERS) for item in imported(node))
    }
    assert found == {"qcompile.frontends.transformers_internals"}


def test_no_public_name_hides_a_module() -> None:
    hidden = [name for name in sources() if name.count(".") == 1 and name.split(".")[1] in qcompile.__all__]
    assert hidden == []
    assert importlib.import_module("qcompile.reporting").__name__ == "qcompile.reporting"


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names of what the statement imports."""
    if isinstance(node, ast.Import):
        return [item.name for item in node.names]
    return [f"{node.module}.{item.name}" for item in node.names]


def said(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines on which something private of torch is named, and what."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in imported(node) if is_private(name))
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if is_private(name) or node.attr in ATTRIBUTES:
                yield node.lineno, name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private_text(node.value):
            yield node.lineno, node.value


def is_private_text(text: str) -> bool:
    """Whether a text is a key or an attribute that torch keeps for itself, or the full name of something private."""
    return text in KEYS | ATTRIBUTES or (re.fullmatch(r"[\w.]+", text) is not None and is_private(text))


def is_private(name: str) -> bool:
    """Whether torch promises nothing about this name."""
    first, *steps = name.split(".")
    if first != "torch" or name in PUBLIC or name.startswith("torch.ops."):
        return False
    return any(step.startswith("_") for step in steps) or name.startswith(
        ("torch.fx.experimental", "torch.multiprocessing.reductions")
    )


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import torch._dynamo", True),
        ("from torch._inductor import config", True),
        ("from torch.utils._python_dispatch import x", True),
        ("from torch.fx.experimental.symbolic_shapes import hint", True),
        ("torch._C._f()", True),
        ("x._version", True),
        ("node.meta['desc']", True),
        ("private('torch._guards.TracingContext', 'x')", True),
        ("import torch", False),
        ("from torch import Tensor", False),
        ("torch.ops.aten._to_copy.default", False),
        ("x.shape", False),
    ],
)
def test_private_names_are_seen(code: str, named: bool) -> None:
    assert bool(list(said(ast.parse(code)))) == named
