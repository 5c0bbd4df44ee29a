"""The meaning holds what GGUF stores, bit by bit, and one kernel multiplies it at the size of the file."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from support.gguf_blocks import TYPES
from support.native_weights import activations, require_kernels
from support.planes_weights import error
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.api import pack_linear
from qcompile.errors import KernelRefusedError
from qcompile.kernel import site_of
from qcompile.targets.registry import find

N, K = 24, 1024
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}


def blocks_of(name: str) -> Tensor:
    """Random bytes [N, blocks, bytes]; the float16 numbers among them are of usual size and both signs."""
    size, values, _ = TYPES[name]
    generator = torch.Generator().manual_seed(len(name) + size)
    blocks = torch.randint(0, 256, (N, K // values, size), generator=generator, dtype=torch.uint8)
    for at in HALVES.get(name, (0,)):
        numbers = torch.randn(N, K // values, generator=generator) * 0.05
        blocks[..., at : at + 2] = numbers.half()[..., None].view(torch.uint8)
    return blocks


@pytest.mark.parametrize("name", TYPES)
def test_dequantized_as_gguf_does(name: str) -> None:
    blocks = blocks_of(name)
    weight = TYPES[name][2](blocks)
    weight.check()
    theirs = dequantize(blocks.flatten(1).numpy(), GGMLQuantizationType[name])
    assert np.array_equal(weight.dequantize().numpy(), theirs)


@pytest.mark.parametrize("name", TYPES)
def test_product(name: str) -> None:
    require_kernels()
    weight = TYPES[name][2](blocks_of(name))
    for dtype, allowed in ((torch.bfloat16, 3e-3), (torch.float32, 1e-6)):
        run = pack_linear(weight, dtype=dtype)
        for m in (1, 2, 17):
            x = activations(m, K, dtype)
            assert error(run(x), x, weight) <= allowed


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("Q4_0", "Q8_0")])
def test_packed_size(name: str) -> None:
    """Within 2 % of the file's, for a matrix whose outputs fill the blocks of 16."""
    require_kernels()
    blocks = torch.cat([blocks_of(name)] * 4)
    weight = TYPES[name][2](blocks)
    row, site = find("native.planes"), site_of(weight, torch.bfloat16, None, NO_ACTIVATION_QUANT)
    assert row.packed(weight.operands, site)[0].numel() <= blocks.numel() * 1.02


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_other_kernels_refuse_them(name: str) -> None:
    weight = TYPES[name][2](blocks_of(name))
    for kernel in ("native.int4", "native.int8_a16", "native.int8", "native.book4", "torch.int4pack", "torch.int8pack"):
        with pytest.raises(KernelRefusedError, match=r"real offset|outer scale"):
            pack_linear(weight, kernel)
