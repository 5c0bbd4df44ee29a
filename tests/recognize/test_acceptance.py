"""Which readings of a weight are believed: a table of dequantization chains, each with contents for which it is a scaling and others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from qcompile.graph.nodes import Constant
from qcompile.graph.walk import constant_nodes, evaluate
from qcompile.meaning import QuantizedWeight
from qcompile.recognize import acceptance
from qcompile.recognize.products import PRODUCTS, Product, find_product
from qcompile.recognize.reading import READINGS, Reading
from qcompile.recognize.weight import Reader, clear

N, K, G = 32, 64, 16
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
linear = torch.nn.functional.linear


def read(
    chain: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    dtype: torch.dtype = F32,
    k: int = K,
    post: Callable[[Tensor, Tensor], Tensor] = lambda y, _: y,
    product: Callable[..., Tensor] | None = None,
) -> tuple[Any, Tensor]:
    """(the reading or the reason, the dense weight) of y = post(x @ chain(**tensors).T, last tensor), without any compiler."""
    weight = chain(**tensors).to(dtype)

    def code(x: Tensor, *given: Tensor) -> Tensor:
        return post(linear(x, chain(**dict(zip(tensors, given, strict=True))).to(x.dtype)), given[-1])

    gm = make_fx(product or code, tracing_mode="real")(torch.ones(2, k, dtype=dtype), *tensors.values())
    placeholders = list(gm.graph.find_nodes(op="placeholder"))
    for node, tensor in zip(placeholders[1:], tensors.values(), strict=True):
        node.meta["val"] = tensor
    constants = {node: Constant(name, tensor) for node, (name, tensor) in zip(placeholders[1:], tensors.items(), strict=True)}
    known = constant_nodes(gm.graph, constants)
    products = [find_product(node, known) for node in gm.graph.nodes if node.target in PRODUCTS]
    reading = Reader(constants).read(next(item for item in products if isinstance(item, Product)))
    return (reading if isinstance(reading, str) else unpacked(reading, constants)), weight


def unpacked(reading: Reading, constants: dict[fx.Node, Constant]) -> QuantizedWeight:
    values = evaluate(reading.inputs, {node: constant.tensor for node, constant in constants.items()})
    found, proposal = reading.proposal.unpack(values), reading.proposal
    weight = QuantizedWeight(
        found.codes,
        found.scales,
        None if proposal.symmetric else found.zeros,
        proposal.bits,
        proposal.group,
        found.perm if proposal.act_order else None,
        proposal.codebook,
        found.outer,
        found.offsets,
        found.outer_offset,
        proposal.outer_group,
    )
    weight.check()
    return weight


def codes(low: int = -8, high: int = 8, dtype: torch.dtype = torch.int8, n: int = N, k: int = K) -> Tensor:
    found = torch.randint(low, high, (n, k), generator=torch.Generator().manual_seed(3))
    found[:, : high - low] = torch.arange(low, high)[:k]
    return found.to(dtype)


def scales(size: float, groups: int = 1, dtype: torch.dtype = F32, n: int = N) -> Tensor:
    return ((torch.rand(n, groups, generator=torch.Generator().manual_seed(4)) + 0.5) * size).to(dtype)


def grouped(q: Tensor, s: Tensor) -> Tensor:
    return (q.reshape(q.shape[0], s.shape[1], -1) * s[..., None]).reshape(q.shape)


# name: (weight from codes and scales, sizes of scales for which it is the plain product, sizes for which it is something else)
CHAINS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, ...], tuple[float, ...]]] = {
    "the plain product": (lambda q, s: q.float() * s, (2.0**-6, 1e6, 1e-9, 1e25, 0.0), (1e30,)),
    "in bfloat16": (lambda q, s: q.to(BF16) * s.to(BF16), (2.0**-6, 1e6, 1e-9, 1e25, 0.0), (1e30,)),
    "by groups": (lambda q, s: grouped(q.float(), s.expand(N, 4)), (2.0**-6, 1e6, 0.0), ()),
    "plus its whole part": (lambda q, s: q.float() * (s + s.to(torch.int32)), (2.0**-6, 2.0, 1e6, 0.0), ()),
    "whole part of the weight": (lambda q, s: q.float() * s + torch.floor(q.float() * s), (), (2.0**-6, 0.3)),
    "remainder": (lambda q, s: q.float() * torch.remainder(s, 1.0), (2.0**-6, 2.3, 0.0), ()),
    "remainder of the weight": (lambda q, s: torch.remainder(q.float() * s, 8.0), (), (0.3, 2.0)),
    "floor division of the weight": (lambda q, s: torch.floor_divide(q.float() * s, 0.001) * 0.001, (0.0,), (0.0101, 1e-5)),
    "overflows on the way": (lambda q, s: (q.float() * s * 1e30) * 1e-30, (2.0**-6, 1.0), (1e12,)),
    "vanishes on the way": (lambda q, s: (q.float() * s * 1e-30) * 1e30, (2.0**-6, 1.0), (1e-12,)),
    "overflows float16": (lambda q, s: (q.to(F16) * s.to(F16)).float(), (2.0**-6,), (3e4,)),
    "vanishes in float16": (lambda q, s: (q.float() * s).to(F16).float(), (0.0,), (1e-9,)),
    "rounded to float8": (lambda q, s: (q.float() * s).to(torch.float8_e4m3fn).float(), (0.0,), (2.0**-6, 3.0)),
    "clamped": (lambda q, s: (q.float() * s).clamp(-1.0, 1.0), (2.0**-6,), (1.0,)),
    "clamped codes": (lambda q, s: q.clamp(max=6).float() * s, (2.0**-6, 1e6), ()),
    "an offset": (lambda q, s: q.float() * s + 0.001, (), (2.0**-6, 0.5)),
    "an offset that bfloat16 hides": (lambda q, s: (q.float() * s + s * 2.0**-9).to(BF16).float(), (0.0, 2.0**-6), ()),
    "a square that bfloat16 hides": (
        lambda q, s: (q.float() * s * (1 + q.float() * 2.0**-14)).to(BF16).float(),
        (0.0,),
        (2.0**-6,),
    ),
    "negated where large": (lambda q, s: torch.where(s > 1, -q.float() * s, q.float() * s), (2.0**-6, 8.0), ()),
    "one element apart": (
        lambda q, s: q.float() * s + torch.nn.functional.pad(s[:1] * 0.3, (0, K - 1, 0, N - 1)),
        (0.0,),
        (2.0**-6,),
    ),
    "not a number at zero": (lambda q, s: q.float() * (s / s * s), (2.0**-6, 1e6), (0.0,)),
    "square": (lambda q, s: q.float() * q.float() * s, (), ()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_weight_is_what_it_is_read_as(name: str) -> None:
    """After a reading of any weight of the chain, every other weight is read right, or refused; those marked must be."""
    chain, plain, other = CHAINS[name]
    clear()
    for size in (2.0**-6, *plain, *other, 2.0, 1e6, 1e12, 1e-9, 1e-38, 0.0, *other):
        reading, dense = read(chain, {"q": codes(), "s": scales(size)})
        if size in plain:
            assert not isinstance(reading, str), f"scales of {size:g}: {reading}"
        if size in other:
            assert isinstance(reading, str), f"scales of {size:g} read as {reading.scales[0]}"
        if not isinstance(reading, str):
            torch.testing.assert_close(reading.dequantize(), dense.float(), rtol=2.0**-7, atol=2.0**-133)  # the least of bfloat16


LOOKALIKES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the zero point is added": lambda q, s, z: (grouped(q.float(), s).reshape(N, 4, -1) + z[..., None]).reshape(N, K),
    "the zero point is doubled for odd codes": lambda q, s, z: grouped(
        q.float() - (z.float()[..., None] * (1 + q.reshape(N, 4, -1) % 2)).reshape(N, K), s
    ),
    "two codes change places": lambda q, s, z: (
        grouped(torch.where(q == 3, 4, torch.where(q == 4, 3, q)).float(), s)
        + torch.nn.functional.pad(s[:1, :1], (0, K - 1, 0, N - 1)) * 0.25
    ),
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("size", [0.01, 600.0])
@pytest.mark.parametrize("name", LOOKALIKES)
def test_look_alikes(name: str, size: float, dtype: torch.dtype) -> None:
    zeros = torch.randint(-8, 8, (N, 4), generator=torch.Generator().manual_seed(5)).to(torch.int8)
    reading, dense = read(LOOKALIKES[name], {"q": codes(), "s": scales(size, 4), "z": zeros}, dtype)
    if not isinstance(reading, str):
        torch.testing.assert_close(reading.dequantize(), dense.float(), rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("written", ["code times scale minus zero point times scale", "code minus zero point, times scale"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.5, 30.0])
def test_zero_points_are_read_however_they_are_written(written: str, dtype: torch.dtype, size: float) -> None:
    def apart(q: Tensor, s: Tensor, z: Tensor) -> Tensor:
        return (q.to(s.dtype).reshape(N, 4, -1) * s[..., None] - (z.to(s.dtype) * s)[..., None]).reshape(N, K)

    def together(q: Tensor, s: Tensor, z: Tensor) -> Tensor:
        return ((q.to(s.dtype).reshape(N, 4, -1) - z.to(s.dtype)[..., None]) * s[..., None]).reshape(N, K)

    zeros = torch.randint(0, 16, (N, 4), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    tensors = {"q": codes(0, 16, torch.uint8), "s": scales(size, 4, dtype), "z": zeros}
    reading, dense = read(apart if "minus zero point times" in written else together, tensors, dtype)
    assert not isinstance(reading, str), reading
    assert reading.bits == 4 and reading.zeros is not None
    step = reading.scales.float().repeat_interleave(K // 4, 1)
    assert bool(((reading.dequantize() - dense.float()).abs() <= step * 0.2).all())


class TestLargeWeights:
    """Weights that are compared in strips of rows."""

    n, k = 4096, 640

    def tensors(self) -> dict[str, Tensor]:
        assert self.n * self.k > acceptance._WHOLE
        return {"q": codes(n=self.n, k=self.k), "s": scales(0.01, n=self.n)}

    def test_is_read(self) -> None:
        reading, dense = read(lambda q, s: q.float() * s, self.tensors(), k=self.k)
        assert torch.equal(reading.dequantize(), dense)

    @pytest.mark.parametrize("row", [0, 1777, 4095])
    def test_one_wrong_row_is_found(self, row: int) -> None:
        tensors = self.tensors()
        first, _ = read(lambda q, s: q.float() * torch.remainder(s, 1.0), tensors, k=self.k)
        assert not isinstance(first, str)
        tensors["s"] = tensors["s"].clone()
        tensors["s"][row] = 1.5
        reading, dense = read(lambda q, s: q.float() * torch.remainder(s, 1.0), tensors, k=self.k)
        assert isinstance(reading, str) or torch.allclose(reading.dequantize(), dense, rtol=1e-5)

    def test_narrowing_looks_at_every_row(self) -> None:
        tensors = self.tensors()
        reading, _ = read(lambda q, s: q.float() * s, tensors, k=self.k)
        assert reading.bits == 4
        tensors["q"] = tensors["q"].clone()
        tensors["q"][2000, 5] = 100
        reading, dense = read(lambda q, s: q.float() * s, tensors, k=self.k)
        assert reading.bits == 8 and torch.equal(reading.dequantize(), dense)


@pytest.mark.parametrize(
    ("size", "factor", "reason"),
    [
        (0.01, 0.5, ""),
        (0.01, 0.0, ""),
        (1e30, 1.0, "leave no room for sums"),
        (1e26, 1e-26, "leave no room for the factor"),
        (1e-30, 1e30, "leave no room"),
        (0.01, 1e30, "out of the range"),
        (0.01, 1e-30, "out of the range"),
        (0.01, torch.inf, "NaN or infinite"),
        (0.01, torch.nan, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("divides", [False, True])
def test_factors_behind_the_product(size: float, factor: float, reason: str, divides: bool) -> None:
    """They become a part of the scales, which is only the same if neither the product nor the scales leave their range."""
    tensors = {"q": codes(), "s": scales(size), "f": torch.full((N,), factor)}
    if divides:
        tensors["f"] = 1 / tensors["f"]
        reason = "out of the range" if factor == 0.0 else reason  # y / inf
    reading, _ = read(lambda q, s, f: q.float() * s, tensors, post=lambda y, f: y / f if divides else y * f)
    assert reason in reading if reason else not isinstance(reading, str), reading


@pytest.mark.parametrize("case", ["zero points", "divisor", "permuted zero points"])
def test_only_the_front_doors_own_reading_of_its_operator_is_taken_without_comparison(case: str) -> None:
    """Where that one is refused, readers that leave the strange tensor out are compared like any other."""
    words = torch.randint(-(1 << 31), 1 << 31, (N, K // 8), dtype=torch.int64).to(torch.int32)
    if case == "divisor":
        tensors = {"p": words.view(torch.uint8), "s": scales(0.5, K // G, torch.float8_e4m3fn), "z": torch.tensor([float("nan")])}
        layout = "nvfp4"
    else:
        tensors = {"p": words, "s": scales(0.5, K // G), "z": torch.full((N, K // G), 100, dtype=torch.int8)}
        layout = "ct_pack_plain_zeros"

    def chain(p: Tensor, s: Tensor, z: Tensor) -> Tensor:
        dense: Tensor = torch.ops.qcompile.dequantize_packed.default(p, s, z, None, layout, 4, G, N, K, F32)
        return dense

    def code(x: Tensor, *given: Tensor) -> Tensor:
        return x @ chain(*given).permute(1, 0)

    reading, dense = read(chain, tensors, product=code if case == "permuted zero points" else None)
    assert isinstance(reading, str) or torch.allclose(reading.dequantize(), dense, rtol=1e-5)


def test_what_is_known_of_weights_does_not_grow_with_their_changes() -> None:
    tensors = {"q": codes(), "s": scales(0.01)}
    clear()
    for change in range(5):
        tensors["s"].mul_(1.0 + change / 8)
        reading, dense = read(lambda q, s: q.float() * s, tensors)
        assert torch.equal(reading.dequantize(), dense)
    assert len(READINGS.entries) == 1
