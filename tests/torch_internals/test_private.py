"""A release of torch that lacks a private name costs what that name is for, never an exception, and says so."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from qcompile.errors import MissingInternalError
from qcompile.torch_internals import private

ESSENTIAL = sorted(part.path for part in private.parts.values() if part.essential)
USEFUL = sorted(part.path for part in private.parts.values() if not part.essential)

# Loads `private` alone first, takes names away, and only then imports the package and compiles a small model.
PROGRAM = """
import importlib.util, json, sys, types, warnings
import torch
import torch._dynamo, torch._functorch.config
names = json.loads(sys.argv[1])
folder = importlib.util.find_spec("qcompile").submodule_search_locations[0]
for name in ("qcompile", "qcompile.torch_internals"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder + "/torch_internals" if "." in name else folder]
import qcompile.torch_internals.private as private
private.hidden.update(names)
for name in ("qcompile", "qcompile.torch_internals"):
    del sys.modules[name]
sys.modules["qcompile.torch_internals.private"] = private

import qcompile
codes = torch.randint(-8, 8, (32, 64), dtype=torch.int8)
scales = torch.rand(32, 1) / 64 + 0.01

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codes, self.scales = torch.nn.Buffer(codes), torch.nn.Buffer(scales)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.codes * self.scales)

model, x = Model(), torch.randn(3, 64)
want = model(x)
with warnings.catch_warnings(record=True) as seen, torch.no_grad():
    warnings.simplefilter("always")
    got = qcompile.compile(model, rest=sys.argv[2])(x)
said = [str(item.message) for item in seen if "qcompile" in str(item.message)]
error = float((got - want).abs().max() / want.abs().max())
rows = [[row.kernel, row.declined] for row in qcompile.report().sites]
print(json.dumps({"error": error, "said": said, "rows": rows}))
"""


def compiled_without(names: list[str], rest: str) -> dict[str, Any]:
    found = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(names), rest], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    assert result["error"] < 0.01
    return result


def test_this_torch_has_all_of_them() -> None:
    assert [part.objection() for part in private.parts.values() if part.objection()] == []
    assert private.missing(inductor=True) == ()


@pytest.mark.parametrize("path", [*ESSENTIAL, *USEFUL])
def test_what_is_gone_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "hidden", {path})
    part = private.parts[path]
    assert part.objection() == f"torch {torch.__version__} has no {path}; without it {part.use}"


def test_an_argument_that_is_gone_is_named() -> None:
    part = private.Part("torch.fx.node.map_arg", "nothing works", takes=("fn", "inner_compile"))
    what = "argument inner_compile of torch.fx.node.map_arg"
    assert part.objection() == f"torch {torch.__version__} has no {what}; without it nothing works"


def test_a_stand_in_raises_only_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "parts", {})
    gone = private.private("torch._nothing.Nothing", "nothing works")
    assert not isinstance(3, gone)
    with pytest.raises(MissingInternalError, match=r"torch\._nothing\.Nothing; without it nothing works"):
        gone(1)


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_without_what_is_useful_the_weight_is_still_served(rest: str) -> None:
    result = compiled_without(USEFUL, rest)
    assert [row[0] is not None for row in result["rows"]] == [True]
    assert result["said"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["torch._functorch._aot_autograd.descriptors.PlainAOTInput"],
        ["torch.fx.experimental.proxy_tensor.make_fx", "torch._ops.OpOverload"],
        ["torch._inductor.compile_fx.compile_fx"],
        ESSENTIAL,
    ],
    ids=["PlainAOTInput", "make_fx", "compile_fx", "all"],
)
def test_without_what_is_needed_graphs_stay_as_they_are(names: list[str]) -> None:
    result = compiled_without(names, "inductor")
    assert [row[0] for row in result["rows"]] == [None]
    assert all(path in result["rows"][0][1] for path in names)
    assert len(result["said"]) == 1 and "graphs go to Inductor unchanged" in result["said"][0]
