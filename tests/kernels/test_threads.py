"""However many threads share a product out, and whatever each of them comes to, the result is bit for bit that of one thread."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.native_weights import require_kernels, weight
from torch import Tensor

THREADS = (2, 3, 5, 16)
ROWS = (1, 2, 40)  # 40: several panels of rows, so that pieces are several blocks


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same_for_every_number_of_threads(call: Callable[..., Tensor], *arguments: Any) -> None:
    torch.set_num_threads(1)
    want = call(*arguments)
    for count in THREADS:
        torch.set_num_threads(count)
        for _ in range(3):  # threads do not meet in the same way twice
            assert torch.equal(call(*arguments), want), count


@pytest.mark.parametrize("n", [1, 513, 2072])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_products(bits: int, n: int) -> None:
    k = 768
    packed = weight(n, k, 128, bits=bits, zeros=True).pack()
    ops = torch.ops.qcompile
    plain = ops.native_int4_linear if bits == 4 else ops.native_int8_a16_linear
    rounds = ops.native_int4_a8_linear if bits == 4 else ops.native_int8_linear
    for rows in ROWS:
        x = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows)).bfloat16()
        same_for_every_number_of_threads(plain, x, packed, None, None, n, k, 128)
        same_for_every_number_of_threads(rounds, x, packed, None, None, None, None, n, k, 128, 0, 127.0, -127.0, False)


@pytest.mark.parametrize("n", [1, 31, 2057])
def test_dense_products(n: int) -> None:
    x, dense = torch.randn(2, 1024).bfloat16(), torch.randn(n, 1024).bfloat16()
    same_for_every_number_of_threads(torch.ops.qcompile.native_dense_linear, x, dense, None)


def read(buffer: Tensor) -> Tensor:
    return torch.tensor(torch.ops.qcompile.native_probe_read(buffer))


def test_reading() -> None:
    for pages in (1, 63, 64, 65, 1111):
        buffer = torch.randint(0, 256, (pages * 4096,), dtype=torch.uint8)
        same_for_every_number_of_threads(read, buffer)
