"""What random cases have found, each as the smallest program that shows it: eager's numbers, also after the change that showed it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
import torch
from support.spellings import Written
from torch import Tensor

import qcompile
from fuzz.trial import Trial, capture
from qcompile.errors import KernelRefusedError
from qcompile.meaning import QuantizedWeight

pytestmark = pytest.mark.usefixtures("fresh_compiler")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
linear = torch.nn.functional.linear


@dataclass(frozen=True, slots=True)
class Found:
    """function(x, *tensors) with x [M, K] of `dtype`; change: new contents, by name, after the first call. served: how many sites."""

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[[], dict[str, Tensor]]
    dtype: torch.dtype = BF16
    m: int = 5
    k: int = 32
    change: Callable[[], dict[str, Tensor]] = field(default=dict)


def codes(n: int = 16, k: int = 32) -> Tensor:
    return torch.randint(-8, 8, (n, k), dtype=torch.int8)


def grouped(q: Tensor, s: Tensor) -> Tensor:
    found: Tensor = (q.to(F32).unflatten(1, (s.shape[1], -1)) * s[..., None]).flatten(1)
    return found


FOUND = (
    Found(
        "a float8 weight that changes",
        lambda x, w, s: linear(x, (w.float() * s).to(x.dtype)),
        lambda: {"w": torch.randn(16, 32).to(torch.float8_e4m3fn), "s": torch.rand(1)},
        change=lambda: {"w": (torch.randn(16, 32) * 2).to(torch.float8_e4m3fn)},
    ),
    Found(
        "something small is added to a large weight",
        lambda x, q, s, z: linear(x, (q.float().reshape(8, 4, 8) * s[..., None] + z[..., None]).flatten(1).to(x.dtype)),
        lambda: {"q": codes(8), "s": torch.rand(8, 4).to(BF16) * 600, "z": torch.randint(-8, 8, (8, 4), dtype=torch.int8)},
    ),
    Found(
        "a weight in steps that are not its scale's",
        lambda x, q, s: linear(x, (torch.floor_divide(grouped(q, s), 0.001) * 0.001).to(x.dtype)),
        lambda: {"q": codes(), "s": torch.rand(16, 4) * 0.01},
    ),
    Found(
        "weights that are all zero",
        lambda x, q, s, b: torch.addmm(b, x, q.to(BF16).remainder(1.0).float().t()) / s,
        lambda: {"q": codes(), "s": 2.0 ** torch.randint(-9, 0, (16,)), "b": torch.randn(16)},
        F32,
    ),
    Found(
        "a difference instead of a product, then the subtrahend becomes huge",
        lambda x, q, s: linear(x, q - s[:, None]),
        lambda: {"q": codes(), "s": torch.rand(16).to(BF16) * 0.01},
        change=lambda: {"s": torch.rand(16).to(BF16) * 1e36},
    ),
    Found(
        "two layers on one x, read by value",
        lambda x, q, s, p, t: (linear(x, grouped(q, s.cumsum(-1)).to(x.dtype)), linear(x, grouped(p, t.cumsum(-1)).to(x.dtype))),
        lambda: {"q": codes(), "s": torch.rand(16, 2), "p": codes(), "t": torch.rand(16, 2)},
    ),
    Found(
        "a factor that keeps a float16 product small",
        lambda x, q, s, b: torch.addmm(b, x, (q.to(F16) * s).t(), alpha=0.5, beta=2),
        lambda: {
            "q": torch.full((16, 32), 7, dtype=torch.int8),
            "s": torch.full((16, 1), 300.0).to(F16),
            "b": torch.randn(16).to(F16),
        },
        F16,
    ),
)


@pytest.mark.parametrize("found", FOUND, ids=[item.name for item in FOUND])
def test_gives_the_numbers_of_eager(found: Found) -> None:
    torch.manual_seed(3)
    tensors = found.tensors()
    x = torch.randn(found.m, found.k).to(found.dtype)
    if found.dtype is F16:
        x = torch.ones_like(x)  # so that sums are as large as they get: 67,200 before the factor, 33,600 with it
    inputs = [x, *tensors.values()]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        results = found.function(*given)
        return results if isinstance(results, tuple) else (results,)

    trial = Trial(capture(function, inputs), inputs, ["x", *tensors])
    assert trial.problem() == ""
    assert trial.check([x], Random(0)) == ""
    for name, content in found.change().items():
        tensors[name].copy_(content)
        assert trial.check([x], Random(1)) == ""


@pytest.mark.parametrize("group", [1, 3, 5])
def test_zentorch_takes_no_odd_groups(group: int) -> None:
    """It answers with numbers from other memory, or ends the process."""
    weight = QuantizedWeight(codes(16, 120), torch.rand(16, 120 // group), None, 4, group)
    with pytest.raises(KernelRefusedError, match=r"even number|needs|zentorch is"):
        qcompile.pack_linear(weight, "zentorch.woq_linear")


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_zero_weights_add_nothing(bits: int, dtype: torch.dtype) -> None:
    """Sums of x times stored codes, and what is taken off again, cancel only up to rounding."""
    w = torch.randint(-7, 8, (16, 64), dtype=torch.int8)
    w[:, 32:] = 0
    w[3] = 0
    run = qcompile.pack_linear(
        QuantizedWeight(w, torch.rand(16, 2) + 0.1, None, bits, 32), f"native.int{'4' if bits == 4 else '8_a16'}", dtype
    )
    x = (torch.randn(5, 64) * 1e3).to(dtype)
    x[:, :32] = 0
    assert torch.equal(run(x), torch.zeros(5, 16, dtype=dtype))
    zeros = torch.full((16, 2), 5, dtype=torch.int8)
    shifted = QuantizedWeight(torch.full((16, 64), 5, dtype=torch.int8), torch.rand(16, 2) + 0.1, zeros, bits, 32)
    run = qcompile.pack_linear(shifted, f"native.int{'4' if bits == 4 else '8_a16'}", dtype)
    assert torch.equal(run((torch.randn(5, 64) * 1e3).to(dtype)), torch.zeros(5, 16, dtype=dtype))


@pytest.mark.parametrize(
    "written",
    [
        lambda x, q, s, b: s * (x @ q.to(BF16).t()) + b.to(BF16),
        lambda x, q, s, b: s * (x @ q.to(BF16).t()) + b,
        lambda x, q, s, b: linear(x, q.to(BF16)).float() * s + b,
        lambda x, q, s, b: linear(x, q.to(BF16) * s.to(BF16)).float() + b,
    ],
)
def test_a_bias_in_a_wider_dtype_than_the_product_keeps_it(written: Callable[..., Tensor]) -> None:
    """A large bias, added inside a bfloat16 kernel, would round the sum to 8 bits."""
    torch.manual_seed(3)
    tensors = [codes(), torch.rand(1) * 1e-3, torch.randn(16) * 30]
    x = torch.randn(3, 32).to(BF16)
    model = Written(lambda m, x: written(x, m.q, m.s, m.b), dict(zip("qsb", tensors, strict=True)))
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "measure": False})(x)
        torch.testing.assert_close(got, model(x), rtol=0, atol=2e-3)
    assert [bool(row.kernel) for row in qcompile.report().sites] == [True]


def test_a_row_at_an_odd_address_does_not_end_the_process() -> None:
    run = qcompile.pack_linear(
        QuantizedWeight(codes(16, 64), torch.full((16, 1), 0.5).to(BF16), None, 4, 64), "torch.int8pack", BF16
    )
    x = torch.randn(65).to(BF16)
    assert torch.equal(run(x[1:].view(1, 64)), run(x[1:].clone().view(1, 64)))
