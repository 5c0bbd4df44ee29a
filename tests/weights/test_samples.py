"""What the few places of a weight that are compared on every call notice, and what they do not."""

import pytest
import torch
from torch import Tensor

from qcompile.weights.samples import PLACES, Samples, content, places


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 100, 128, 129, 1000, 4096, 1 << 20, (1 << 20) + 24])
@pytest.mark.parametrize("start", [0, 3, 8])
def test_places_lie_in_the_tensor_and_no_eighth_is_without_one(size: int, start: int) -> None:
    tensor = torch.zeros(start + size, dtype=torch.uint8)[start:]
    words, single = places(tensor)
    low = tensor.data_ptr() if size else 0
    ends = sorted([(address, address + 8) for address in words] + [(address, address + 1) for address in single])
    assert all(low <= begin and end <= low + size for begin, end in ends)
    assert all(address % 8 == 0 for address in words) and len(words) <= PLACES and len(single) < 24
    gaps = [begin - end for (_, end), (begin, _) in zip([(low, low), *ends], [*ends, (low + size, 0)], strict=True)]
    assert max(gaps) <= max(size / 8, 8)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("part", range(8))
def test_a_changed_eighth_is_noticed(part: int, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (172, 96 * dtype.itemsize), dtype=torch.uint8)
    tensor, other = raw.view(dtype), torch.zeros(3, dtype=dtype)
    samples = Samples([other, tensor])
    assert samples.same() and samples.before[1] == content(tensor)
    eighth = raw.numel() // 8
    stretch = raw.view(-1)[part * eighth : (part + 1) * eighth]
    stretch.copy_(255 - stretch)
    assert not samples.same() and samples.before[1] != content(tensor) and samples.before[0] == content(other)


def test_half_of_the_columns_is_noticed() -> None:
    """Places that all lie in one column would miss it."""
    for rows, columns in ((4096, 2048), (2048, 5632), (64, 64)):
        for half in (slice(0, columns // 2), slice(columns // 2, columns)):
            tensor = torch.zeros(rows, columns, dtype=torch.int8)
            samples = Samples([tensor])
            tensor[:, half] = 1
            assert not samples.same()


def test_a_small_tensor_is_compared_whole() -> None:
    for tensor in (
        torch.zeros(1),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(32),
        torch.zeros(125, dtype=torch.int8)[2:],
        torch.tensor(0.0),
    ):
        for index in range(tensor.numel()):
            samples = Samples([tensor])
            tensor.view(-1)[index] += 1
            assert not samples.same()


def test_what_has_no_bytes_to_read() -> None:
    released = torch.zeros(64)
    released.untyped_storage().resize_(0)
    none: list[Tensor] = [
        torch.empty(0),
        torch.zeros(4, device="meta"),
        torch.zeros(4, 4).t(),
        torch.zeros(4, 4).to_sparse(),
        released,
    ]
    samples = Samples(none)
    assert samples.same() and samples.before == [[]] * len(none)
    assert Samples([]).same()
