"""Readers propose every reading that fits dtypes and shapes, and among the proposals is the right one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.checkpoints import awq_tensors, gptq_tensors
from torch import Tensor

from qcompile.formats.proposal import Cone, Leaf, LeafIndex, Proposal
from qcompile.meaning import QuantizedWeight, dequantize
from qcompile.operators import dequantize_packed
from qcompile.recognize.readers import proposals


def cone(n: int, k: int, tensors: Sequence[Tensor], **more: Any) -> Cone:
    leaves = tuple(Leaf(f"leaf{index}", tensor.dtype, tuple(tensor.shape)) for index, tensor in enumerate(tensors))
    return Cone(leaves, n, k, **more)


def right_ones(where: Cone, tensors: Sequence[Tensor], expected: Tensor) -> list[Proposal]:
    """The proposals whose dequantized weight equals `expected` [N, K] to the last bit (float32)."""
    found: list[Proposal] = []
    for _, proposal in proposals(where):
        codes, scales, zeros, perm, *_ = proposal.unpack(tensors)
        weight = QuantizedWeight(codes, scales, zeros, proposal.bits, proposal.group, perm, proposal.codebook)
        if weight.dequantize().shape == expected.shape and torch.equal(weight.dequantize(), expected):
            weight.check()
            found.append(proposal)
    return found


def some_weight(n: int, k: int, groups: int, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned codes, scales and zero points of a random weight."""
    generator = torch.Generator().manual_seed(n * k + groups)
    codes = torch.randint(0, 1 << bits, (n, k), generator=generator).int()
    zeros = torch.randint(1, 1 << bits, (n, groups), generator=generator).int()
    return codes, torch.rand(n, groups, generator=generator) + 0.5, zeros


@pytest.mark.parametrize("groups", [1, 2, 32])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize(("n", "k"), [(32, 32), (8, 64), (64, 32)])
def test_gptq(n: int, k: int, groups: int, act_order: bool, v2: bool) -> None:
    codes, scales, zeros = some_weight(n, k, groups)
    g_idx = torch.arange(k) // (k // groups)
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=torch.Generator().manual_seed(0))]
    stored = gptq_tensors(codes, scales, zeros, g_idx.int(), 4, v2)
    expected = (codes - zeros[:, g_idx]).float() * scales[:, g_idx]
    tensors = list(stored.values())
    for order in (tensors, tensors[::-1]):  # the order in which a graph reads its constants says nothing
        readings = right_ones(cone(n, k, order), order, expected)
        assert readings
        assert readings[0].group == k // groups
        assert readings[0].act_order == (act_order and groups > 1)
        assert readings[0].format in {"gptq v2"} if v2 else {"gptq"}


def test_symmetric_gptq_is_read_without_its_zero_points() -> None:
    codes, scales, _ = some_weight(16, 64, 2)
    g_idx = torch.arange(64) // 32
    stored = list(gptq_tensors(codes, scales, torch.full((16, 2), 8), g_idx.int(), 4, v2=False).values())
    readings = right_ones(cone(16, 64, stored), stored, (codes - 8).float() * scales[:, g_idx])
    assert readings[0].symmetric
    assert not readings[0].act_order


@pytest.mark.parametrize(("n", "k", "groups"), [(8, 8, 1), (64, 64, 2), (64, 64, 64), (16, 48, 3)])
def test_awq(n: int, k: int, groups: int) -> None:
    codes, scales, zeros = some_weight(n, k, groups)
    zeros[0, 0] = 0
    stored = list(awq_tensors(codes, scales, zeros).values())
    columns = torch.arange(k) // (k // groups)
    readings = right_ones(cone(n, k, stored), stored, (codes - zeros[:, columns]).float() * scales[:, columns])
    assert [reading.format for reading in readings] == ["awq"]


PLAIN_SCALES = {
    "scalar": ((), 1),
    "one": ((1,), 1),
    "channel": ((-1,), 1),
    "channel column": ((-1, 1), 1),
    "channel row": ((1, -1), 1),
    "groups": ((-1, 4), 4),
    "groups with a one": ((-1, 4, 1), 4),
    "groups first": ((4, -1), 4),
}


@pytest.mark.parametrize("shape", PLAIN_SCALES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "k"), [(16, 16), (4, 16), (12, 32)])
@pytest.mark.parametrize("zero", ["none", "grid", "scalar", "float"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_plain_bytes(dtype: torch.dtype, zero: str, n: int, k: int, transposed: bool, shape: str) -> None:
    sizes, groups = PLAIN_SCALES[shape]
    generator = torch.Generator().manual_seed(n)
    low = 0 if dtype == torch.uint8 else -128
    codes = torch.randint(low, low + 256, (n, k), generator=generator)
    rows = n if -1 in sizes else 1
    grid = torch.rand(rows, groups, generator=generator) + 0.5
    zeros = torch.randint(low, low + 256, (rows, groups), generator=generator)
    if zero == "scalar":
        zeros = zeros[:1, :1]
    if zero == "none":
        zeros = torch.full((1, 1), low + 128)
    columns = torch.arange(k) // (k // groups)
    wide_zeros = zeros.expand(zeros.shape[0], groups)[:, columns]
    expected = ((codes - wide_zeros).float() * grid[:, columns]).expand(n, k)

    def shaped(tensor: Tensor) -> Tensor:
        if sizes and sizes[0] == 4:
            tensor = tensor.t()
        return tensor.reshape([rows if size == -1 else size for size in sizes]).contiguous()

    stored = [codes.to(dtype).t().contiguous() if transposed else codes.to(dtype), shaped(grid)]
    if zero == "grid":
        stored.append(shaped(zeros).to(dtype))
    if zero == "float":
        stored.append(shaped(zeros).float())
    if zero == "scalar":
        stored.append(zeros.reshape(()).int())
    readings = right_ones(cone(n, k, stored), stored, expected)
    assert readings
    assert readings[0].bits == 8
    assert readings[0].group == k // groups


def test_the_front_door_says_everything_itself() -> None:
    codes, scales, zeros = some_weight(16, 32, 2)
    stored = gptq_tensors(codes, scales, zeros, (torch.arange(32) // 16).int(), 4, v2=False)
    leaves = [stored["scales"], stored["qweight"], stored["qzeros"]]
    arguments = {
        "packed": LeafIndex(1),
        "scales": LeafIndex(0),
        "zeros": LeafIndex(2),
        "g_idx": None,
        "layout": "gptq",
        "bits": 4,
        "group": 16,
        "n": 16,
        "k": 32,
        "dtype": torch.float32,
    }
    where = cone(16, 32, leaves, op=dequantize_packed, arguments=arguments)
    name, first = next(proposals(where))
    assert (name, first.format, first.symmetric, first.act_order) == ("front_door", "gptq", False, False)
    found = first.unpack(leaves)
    expected = dequantize_packed(leaves[1], leaves[0], leaves[2], None, "gptq", 4, 16, 16, 32, torch.float32)
    assert torch.equal(dequantize(found.codes, found.scales, found.zeros, 16), expected)


def test_a_front_door_call_of_other_size_is_not_read() -> None:
    leaves = [torch.zeros(16, 4, dtype=torch.int32), torch.ones(16, 1)]
    arguments = {"packed": LeafIndex(0), "scales": LeafIndex(1), "layout": "ct_pack", "bits": 4, "group": 32, "n": 16, "k": 64}
    where = cone(16, 32, leaves, op=dequantize_packed, arguments=arguments)
    assert "front_door" not in {name for name, _ in proposals(where)}


def test_a_float_weight_gets_no_proposal() -> None:
    assert list(proposals(cone(16, 32, [torch.ones(16, 32), torch.ones(16, 1)]))) == []
