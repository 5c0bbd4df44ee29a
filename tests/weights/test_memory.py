"""Retired addresses: equal copies, freed when dead, never handed out again."""

from pathlib import Path

import pytest
import torch

from qcompile.weights.memory import HUGE_PAGE, discard_pages, page_out, retired, trim


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1000, 700), (2, 3, 4)])
def test_a_copy_is_equal_in_everything_but_the_address(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(-100, 100, shape).to(dtype)
    copy = retired(tensor)
    assert torch.equal(copy, tensor)
    assert (copy.dtype, copy.shape, copy.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert copy.data_ptr() != tensor.data_ptr()
    copy.zero_()
    assert not torch.equal(copy, tensor) or not tensor.any()


def test_strides_are_kept() -> None:
    tensor = torch.randn(30, 50).t()[::2]
    copy = retired(tensor)
    assert copy.stride() == tensor.stride()
    assert torch.equal(copy, tensor)


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.empty(4, 0), torch.empty(3, device="meta")])
def test_what_has_no_memory_here_comes_back_as_it_is(tensor: torch.Tensor) -> None:
    assert retired(tensor) is tensor


def test_scalars() -> None:
    assert retired(torch.tensor(3.5)).item() == 3.5


def test_large_copies_are_aligned_to_huge_pages() -> None:
    assert retired(torch.zeros(HUGE_PAGE + 1, dtype=torch.int8)).data_ptr() % HUGE_PAGE == 0


def test_no_address_comes_back() -> None:
    spans: list[tuple[int, int]] = []
    for size in [64, 4096, 100_000, HUGE_PAGE, 3 * HUGE_PAGE] * 20:
        copy = retired(torch.zeros(size, dtype=torch.int8))
        start = copy.data_ptr()
        assert all(start + size <= other or start >= other + length for other, length in spans)
        spans.append((start, size))
        del copy
        ordinary = torch.zeros(size, dtype=torch.int8)
        assert all(ordinary.data_ptr() + size <= other or ordinary.data_ptr() >= other + length for other, length in spans)


def test_memory_goes_back_when_the_last_view_dies() -> None:
    size = 64 << 20
    source = torch.ones(size, dtype=torch.int8)
    before = resident()
    copy = retired(source)
    view, storage = copy[10:20], copy.untyped_storage()
    del copy
    assert view.tolist() == [1] * 10
    assert resident() - before > size * 0.9
    del view
    assert resident() - before > size * 0.9
    del storage
    assert resident() - before < size * 0.1


@pytest.mark.parametrize("size", [1, 5000, 64 << 20])
def test_forgotten_pages_go_back_while_the_tensor_lives_and_dies_as_usual(size: int) -> None:
    before = resident()
    tensor = torch.ones(size, dtype=torch.int8)
    discard_pages(tensor)
    if size > 1 << 20:
        assert resident() - before < size * 0.1
        assert int(tensor[size // 2]) == 0
    neighbours = [torch.ones(size, dtype=torch.int8) for _ in range(3)]
    del tensor
    assert all(bool((neighbour == 1).all()) for neighbour in neighbours)


def test_a_tensor_over_a_file_gives_back_its_memory_and_keeps_its_content(tmp_path: Path) -> None:
    size = 32 << 20
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (size // 256))
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    total = int(mapped.sum())
    before = resident()
    page_out(mapped)
    if resident() == before:
        pytest.skip("this system does not page out on request")
    assert before - resident() > size * 0.5
    assert int(mapped.sum()) == total


def test_what_torch_can_free_is_not_paged_out() -> None:
    trim()
    tensor = torch.ones(32 << 20, dtype=torch.uint8)
    before = resident()
    page_out(tensor)
    assert before - resident() < tensor.nbytes * 0.1 and bool(tensor.all())
