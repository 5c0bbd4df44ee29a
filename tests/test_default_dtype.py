"""Whatever torch's default dtype and device are: everything we make says its own, and the whole way from packing to a call works."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qcompile

FACTORIES = frozenset(
    [
        "arange",
        "as_tensor",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "zeros",
    ]
)

FLOW = """
import sys
import torch
from torch import nn
from torch.nn.functional import linear

cpu = {"device": "cpu"}
if sys.argv[1] == "meta":
    torch.set_default_device("meta")
else:
    torch.set_default_dtype(getattr(torch, sys.argv[1]))
import qcompile
from qcompile.meaning import sqnr_db

generator = torch.Generator().manual_seed(0)

def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator, dtype=torch.float32, **cpu).to(dtype)

def codes(low, high, *shape, dtype=torch.int8):
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int64, **cpu).to(dtype)

def scales(*shape):
    return random(*shape).abs() * 0.01 + 0.005

print("kernels", len(qcompile.kernels()))

class Symmetric(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("q", codes(-8, 8, 64, 64))
        self.register_buffer("s", scales(64, 1))

    def forward(self, x):
        return linear(x, (self.q.to(torch.float32) * self.s).to(x.dtype))

class Nibbles(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("p", codes(0, 256, 64, 32, dtype=torch.uint8))
        self.register_buffer("s", scales(64, 4))
        self.register_buffer("z", codes(0, 16, 64, 4, dtype=torch.uint8))

    def forward(self, x):
        q = torch.stack((self.p & 15, self.p >> 4), -1).reshape(64, 4, 16).float()
        return linear(x, ((q - self.z[..., None]) * self.s[..., None]).reshape(64, 64).to(x.dtype))

class PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("q", codes(-127, 128, 64, 64))
        self.register_buffer("s", scales(64, 1))

    def forward(self, x):
        a = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        return linear(torch.round((x / a).clamp(-128, 127)) * a, self.q.to(x.dtype) * self.s.to(x.dtype))

weights = {
    "int4": qcompile.QuantizedWeight(codes(-8, 8, 64, 256), scales(64, 2)),
    "int8": qcompile.QuantizedWeight(codes(-127, 128, 64, 256), scales(64, 2), bits=8),
}
for name, weight in weights.items():
    for dtype in (torch.float32, torch.bfloat16):
        y = qcompile.pack_linear(weight, dtype=dtype)(random(2, 256, dtype=dtype))
        assert y.dtype is dtype and y.device.type == "cpu" and bool(y.isfinite().all()), name
print("pack_linear", len(weights))

served = 0
for make in (Symmetric, Nibbles, PerToken):
    for options in ({}, {"kernels": ["reference"], "verify": "every"}):
        torch._dynamo.reset()
        model, x = nn.Sequential(make(), nn.SiLU(), make()), random(3, 64, dtype=torch.bfloat16)
        with torch.no_grad():
            want = model(x)
            got = qcompile.compile(model, rest="eager", measure=False, **options)(x)
        assert got.dtype is want.dtype and got.device == want.device and sqnr_db(want, got) > 30, (make, options)
        served += sum(bool(row.kernel) for row in qcompile.report().sites)
print("served", served)
print("explained", len(qcompile.explain(Symmetric(), random(3, 64)).sites))
"""


@pytest.mark.parametrize("default", ["bfloat16", "meta"])
def test_everything_runs(default: str) -> None:
    done = subprocess.run([sys.executable, "-c", FLOW, default], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said["pack_linear"] == "2" and said["served"] == "12" and said["explained"] == "1" and int(said["kernels"]) > 5


def factory_calls(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and missing keywords of every call of one of torch's factories."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            given = {keyword.arg for keyword in node.keywords}
            if None not in given:
                yield node.lineno, [name for name in ("dtype", "device") if name not in given]


def test_every_tensor_we_make_says_its_dtype_and_device() -> None:
    root = Path(qcompile.__file__).parent
    seen, silent = 0, []
    for path in sorted(root.rglob("*.py")):
        for line, missing in factory_calls(path.read_text()):
            seen += 1
            if missing:
                silent.append(f"{path.relative_to(root)}:{line} without {' and '.join(missing)}")
    assert not silent and seen > 30


def test_the_check_sees_a_silent_one() -> None:
    text = "torch.zeros(3, dtype=torch.int8)\ntorch.ones(2, device='cpu', dtype=d)\nx.zeros(3)\ntorch.empty(2)"
    assert list(factory_calls(text)) == [(1, ["device"]), (2, []), (4, ["dtype", "device"])]
