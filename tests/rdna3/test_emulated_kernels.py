"""The shipped .hip source, run on the CPU by the host emulation, against float64: every path, dtype, format and edge."""

import pytest
import torch
from support.emulated_rdna3 import TOLERANCE, Case, Emulator, case

DTYPES = (torch.float16, torch.bfloat16)
PATHS = {  # rows of one block
    "decode_m1": 1,
    "decode_m2": 2,
    "decode_m4": 4,
    "decode_m8": 8,
    "prefill_16x64": 16,
    "prefill_32x64": 32,
    "prefill_64x128": 64,
    "prefill_128x128": 128,
}


def check(emulator: Emulator, given: Case, path: str = "", splits: int = 0) -> None:
    result = emulator.run(given, path, splits)
    assert given.error(result) <= TOLERANCE[given.a.dtype]


def test_these_are_all_paths(emulator: Emulator) -> None:
    assert emulator.paths == list(PATHS)


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("act_order", [False, True], ids=["in_order", "act_order"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path(emulator: Emulator, path: str, dtype: torch.dtype, act_order: bool, v2: bool) -> None:
    rows = PATHS[path]
    check(emulator, case(rows, 136, 320, 64, dtype, act_order=act_order, v2=v2), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_ragged_rows_and_columns(emulator: Emulator, path: str, dtype: torch.dtype) -> None:
    rows = PATHS[path]
    decode = path.startswith("decode")
    for m in {max(1, rows - 1), *(() if decode else (1, rows + 1))}:
        for n in (8, 40, 264):
            check(emulator, case(m, n, 96, 32, dtype, act_order=True, seed=n), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_smallest_k_and_every_group_size(emulator: Emulator, path: str, dtype: torch.dtype) -> None:
    for k, group in ((32, 32), (64, 64), (96, 96), (128, 128), (352, 352), (576, 192)):
        check(emulator, case(min(3, PATHS[path]), 24, k, group, dtype, act_order=True, v2=True, seed=k), path)


@pytest.mark.parametrize("splits", [2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("path", PATHS)
def test_split_k(emulator: Emulator, path: str, dtype: torch.dtype, splits: int) -> None:
    check(emulator, case(PATHS[path], 40, 544, 32, dtype, act_order=True), path, splits)


@pytest.mark.parametrize("path", ["decode_m1", "decode_m8"])
def test_more_k_than_lds_holds(emulator: Emulator, path: str) -> None:
    check(emulator, case(PATHS[path], 8, 8192 // PATHS[path] * 2 + 1056, 32, torch.bfloat16, act_order=True), path)


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("path", ["decode_m1", "prefill_16x64"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
def test_every_code_with_every_zero_point_is_exact(emulator: Emulator, path: str, dtype: torch.dtype, v2: bool) -> None:
    """One-hot activations and a scale of 1 give the integers q - z back, the effective zero point 16 included."""
    given = case(1, 16, 32, 32, dtype, v2=v2)
    for k in range(0, 32, 5):
        given.a = torch.zeros(1, 32, dtype=dtype)
        given.a[0, k] = 1
        given.scales = torch.ones_like(given.scales)
        nibble = (k % 8 // 2) * 4 + (16 if k % 2 else 0)  # the shuffled place of value k in its word
        for code in range(16):
            word = code << nibble
            given.qweight = torch.zeros_like(given.qweight)
            given.qweight[k // 8] = word - (1 << 32) if word >= 1 << 31 else word
            expected = torch.tensor([[code - (column % 16 + (0 if v2 else 1)) for column in range(16)]])
            assert torch.equal(emulator.run(given, path).long(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 128, 256), (5, 96, 512), (9, 64, 256), (33, 200, 256), (150, 136, 128)])
def test_the_models_own_choice(emulator: Emulator, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = shape
    check(emulator, case(m, n, k, 128, dtype, act_order=True))


@pytest.mark.parametrize("path", ["decode_m4", "prefill_32x64", "prefill_64x128"])
def test_results_repeat_bit_by_bit_whatever_the_order_of_threads(emulator: Emulator, path: str) -> None:
    given = case(3, 72, 480, 32, torch.bfloat16, act_order=True)
    first = emulator.run(given, path, 2)
    emulator.library.qcompile_emulation_run_backwards(1)
    try:
        assert torch.equal(emulator.run(given, path, 2), first)
    finally:
        emulator.library.qcompile_emulation_run_backwards(0)


@pytest.mark.parametrize("path", ["decode_m1", "prefill_16x64"])
def test_large_activations_and_long_k_keep_the_error(emulator: Emulator, path: str) -> None:
    given = case(1, 64, 4096, 128, torch.float16)
    check(emulator, given, path)
    biased = case(1, 64, 4096, 128, torch.bfloat16)  # a mean far from zero: what is folded into the sum is large
    biased.a = (biased.a * 0.1 + 4).to(torch.bfloat16)
    biased.expected = biased.a.double() @ unpack(biased).t()
    check(emulator, biased, path)


def unpack(given: Case) -> torch.Tensor:
    """W in float64 from the packed tensors, by a one-hot walk through the words."""
    bits = torch.tensor((0, 16, 4, 20, 8, 24, 12, 28))
    words = given.qweight.long() & 0xFFFFFFFF
    codes = ((words[:, None, :] >> bits[None, :, None]) & 15).reshape(-1, words.shape[1])
    zeros = ((given.qzeros.long()[:, :, None] >> (4 * torch.arange(8))) & 15).reshape(given.qzeros.shape[0], -1) + (
        0 if given.v2 else 1
    )
    group = codes.shape[0] // zeros.shape[0]
    return ((codes - zeros.repeat_interleave(group, 0)).double() * given.scales.double().repeat_interleave(group, 0)).t()


def test_another_architecture_is_refused_with_a_sentence(emulator: Emulator) -> None:
    given = case(1, 8, 32, 32, torch.float16)
    for name in (b"gfx1030", b"gfx942", b"gfx1201", b"gfx1101", b"gfx1102", b"gfx1151"):
        emulator.library.qcompile_emulation_set_architecture(name)
        try:
            with pytest.raises(RuntimeError, match="runs on gfx1100 only"):
                emulator.run(given)
        finally:
            emulator.library.qcompile_emulation_set_architecture(b"gfx1100")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((1, 12, 64, 32), "N must be a multiple of 8"),
        ((1, 8, 48, 48), "K must be a multiple of 32"),
        ((1, 8, 64, 16), "group must be a multiple of 32"),
        ((1, 8, 96, 64), "group must be a multiple of 32 that divides K"),
        ((0, 8, 64, 32), "M must be at least 1"),
    ],
)
def test_the_launcher_refuses_shapes_with_a_sentence(emulator: Emulator, shape: tuple[int, int, int, int], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        emulator.plan(*shape, torch.float16)


def test_decode_paths_refuse_more_rows_than_they_have(emulator: Emulator) -> None:
    with pytest.raises(RuntimeError, match="too many rows"):
        emulator.run(case(3, 8, 32, 32, torch.float16), "decode_m2")
