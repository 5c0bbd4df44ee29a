"""Without a C++ compiler, or with one that fails, the rest of a graph runs eagerly, with one warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.torch_internals import compilers

RUN = """
import contextlib
import logging
import warnings
import torch
from torch import nn
import qcompile
from qcompile.torch_internals import compilers

logging.basicConfig(level=logging.WARNING)

class W8(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("q", torch.randint(-128, 128, (64, 64)).to(torch.int8))
        self.register_buffer("s", torch.rand(64, 1) * 0.01)

    def forward(self, x):
        return nn.functional.silu(nn.functional.linear(x, self.q.float() * self.s)) * 2

with warnings.catch_warnings(record=True) as said, torch.no_grad():
    warnings.simplefilter("always")
    for model in (nn.Sequential(W8(), W8()), nn.Sequential(W8(), W8(), W8(), W8()), nn.Linear(64, 64)):
        x = torch.randn(3, 64)
        want, got = model(x), qcompile.compile(model)(x)
        print("near", bool((want - got).abs().max() < 0.02 * want.abs().max()))
    print(qcompile.report().summary)
    with torch.enable_grad() if compilers.absent() else contextlib.nullcontext():
        model = nn.Linear(64, 64)
        y = torch.compile(model, backend="qcompile")(x)
        if y.requires_grad:
            y.sum().backward()
        print("trained", model.weight.grad is not None)
ours = [str(warning.message) for warning in said if "C++ compiler" in str(warning.message)]
print("warnings", len(ours), 'rest="eager"' in ours[0], ours[0])
"""
# Says what a compiler says of itself, and compiles nothing.
FAILING = '#!/bin/sh\ncase "$*" in *--version*) echo "g++ (GCC) 12.2.0";; *) echo "no space left" >&2; exit 1;; esac\n'


@pytest.mark.parametrize("fails", [False, True], ids=["missing", "failing"])
def test_the_rest_runs_eagerly_with_one_warning(fails: bool, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    if fails:
        compiler.write_text(FAILING)
        compiler.chmod(0o755)
    empty = {"PATH": str(tmp_path / "bin"), "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env={**os.environ, **empty}, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[:3] == ["near True"] * 3 and "of 6 quantized linears rewritten" in lines[3] and lines[4] == f"trained {not fails}"
    assert lines[5].startswith("warnings 1 True qcompile: Inductor, which compiles the rest of a graph, needs a C++ compiler, and ")
    assert ("the one here fails" if fails else "none was found") in lines[5]
    assert "WARNING:qcompile" not in done.stderr


def test_other_errors_are_not_taken_for_it() -> None:
    class CppCompileError(RuntimeError):
        pass

    try:
        try:
            raise CppCompileError("C++ compile error")
        except CppCompileError as error:
            raise RuntimeError("backend failed") from error
    except RuntimeError as error:
        assert compilers.failed(error)
    loop = ValueError("no compiler, but nothing about it")
    loop.__cause__ = KeyError("x")
    loop.__cause__.__context__ = loop
    assert not compilers.failed(loop) and compilers.failed(RuntimeError("in a worker: InvalidCxxCompiler: none"))
