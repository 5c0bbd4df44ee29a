"""A large weight is read, proven and packed a strip of rows at a time: nothing as large as its dense form is held on the way."""

from typing import Any

import pytest
import torch
from support.graphs import through, with_state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qcompile.formats.words import unpack
from qcompile.operators import Structure, packed_linear
from qcompile.options import Options
from qcompile.pipeline import State

N, K, G = 20480, 512, 32  # ten million elements
TURNED = 0x55
ROW = 17  # not among those that are looked at first


class Nibbles(nn.Module):
    """Symmetric 4-bit codes, two in a byte, as somebody's own code unpacks them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("q", torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, generator=generator))
        self.register_buffer("s", torch.rand(N, K // G, generator=generator) * 0.01 + 0.001)

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.stack((self.q & 15, self.q >> 4), -1).reshape(N, K // G, G).float() - 8
        return x @ (codes * self.s[:, :, None]).reshape(N, K).t()


class Bytes(nn.Module):
    """Codes in bytes, in 4 bits but for one row, with some bits turned over so that no reader knows them."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("q", torch.randint(-8, 8, (N, K), dtype=torch.int8, generator=generator))
        self.q[ROW] = torch.randint(low, high + 1, (K,), dtype=torch.int8, generator=generator)
        self.q[ROW, :2] = torch.tensor([low, high], dtype=torch.int8)
        self.q ^= TURNED
        self.register_buffer("s", torch.rand(N, 1, generator=generator) * 0.01 + 0.001)

    def forward(self, x: Tensor) -> Tensor:
        return x @ ((self.q ^ TURNED).float() * self.s).t()


class Packed(nn.Module):
    """4-bit codes in words, as the front doors' layers hold them."""

    def __init__(self, layout: str, words: tuple[int, int], scales: tuple[int, int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("q", torch.randint(-(1 << 31), 1 << 31, words, generator=generator).to(torch.int32))
        self.register_buffer("s", torch.rand(scales, generator=generator) * 0.01 + 0.001)
        self.spec = Structure(layout, 4, G, N, K).spec

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = packed_linear(x, self.q, self.s, None, None, None, self.spec)
        return y


class Largest(TorchDispatchMode):
    """The most bytes of any floating-point tensor, of any other, and of codes in one piece, that an operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.floats = self.others = self.unpacked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "cpu" and type(result) is Tensor:
            size = result.untyped_storage().nbytes()
            if result.is_floating_point():
                self.floats = max(self.floats, size)
            elif func.namespace == "aten":
                self.others = max(self.others, size)
            elif func is unpack:
                self.unpacked = max(self.unpacked, size)
        return result


def folded(model: nn.Module, options: Options | None = None) -> tuple[State, Largest]:
    """What the passes make of it, and the largest tensors on the way."""
    seen = Largest()

    def work(state: State) -> None:
        with seen:
            through("fold")(state)

    return with_state(model, torch.randn(2, K), work, options or Options(measure=False)), seen


@pytest.mark.parametrize(("kernel", "size"), [("native.int4", 1), ("torch.int4pack", 4)])
def test_nothing_as_large_as_the_dense_weight_is_made(kernel: str, size: int) -> None:
    """size: bytes of a code as the kernel's packing takes it."""
    state, seen = folded(Nibbles(), Options(kernels=(kernel,), measure=False))
    (site,) = state.sites
    assert site.report.kernel == kernel and site.report.bits == 4
    assert seen.floats <= 32 << 20, "a strip of it in float32, or the scales"  # the dense weight has 42 MB in float32
    assert seen.others <= N * K * size, "its codes"


@pytest.mark.parametrize("kernel", ["native.int4", "torch.int4pack"])
@pytest.mark.parametrize(
    "model", [Packed("ct_pack", (N, K // 8), (N, K // G)), Packed("gptq", (K // 8, N), (K // G, N))], ids=["ct_pack", "gptq"]
)
def test_words_are_unpacked_in_strips(kernel: str, model: nn.Module) -> None:
    _, seen = folded(model, Options(kernels=(kernel,), measure=False))
    assert 0 < seen.unpacked <= 1 << 20


@pytest.mark.parametrize(("low", "high", "bits"), [(-8, 7, 4), (0, 15, 4), (-100, 100, 8)])
def test_rows_that_were_not_looked_at_decide_the_bits(low: int, high: int, bits: int) -> None:
    state, _ = folded(Bytes(low, high))
    (site,) = state.sites
    assert site.report.declined == "" and site.report.bits == bits
