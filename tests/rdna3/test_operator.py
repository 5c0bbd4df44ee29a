"""The operator: every violated precondition is an error that names the argument, the fake kernel agrees, opcheck passes."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.emulated_rdna3 import TOLERANCE, Case, case
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)


def given(m: int = 2, n: int = 16, k: int = 64, group: int = 32, dtype: torch.dtype = torch.float16) -> Case:
    return case(m, n, k, group, dtype, act_order=True)


def strided(tensor: Tensor) -> Tensor:
    """The same values in memory that is not contiguous."""
    return torch.stack((tensor, tensor), -1)[..., 0]


def misaligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous, starting one element after an aligned address."""
    flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    flat[1:] = tensor.reshape(-1)
    return flat[1:].reshape(tensor.shape)


# What is wrong -> (position of the argument, how it is made, what the error says).
BAD: dict[str, tuple[int, Callable[[Tensor], Tensor], str]] = {
    "a of float32": (0, lambda t: t.float(), "a: expected float16 or bfloat16, got float32"),
    "a with three dimensions": (0, lambda t: t[None], r"a: expected shape \[M, K\], got \[1, 2, 64\]"),
    "a with K of 40": (0, lambda t: t[:, :40].contiguous(), "a: expected K to be a multiple of 32"),
    "a with K of 0": (0, lambda t: t[:, :0].contiguous(), "a: expected K to be a multiple of 32"),
    "a not contiguous": (0, strided, "a: expected a contiguous tensor"),
    "a with another K": (0, lambda t: t[:, :32].contiguous(), r"b_q_weight: expected shape \[4, 16\], got \[8, 16\]"),
    "weights of int64": (1, lambda t: t.long(), "b_q_weight: expected int32, got int64"),
    "weights with one dimension": (1, lambda t: t[0], r"b_q_weight: expected shape \[K / 8, N\]"),
    "weights with N of 12": (1, lambda t: t[:, :12].contiguous(), "b_q_weight: expected N to be a multiple of 8"),
    "weights with N of 0": (1, lambda t: t[:, :0].contiguous(), "b_q_weight: expected N to be a multiple of 8"),
    "weights transposed": (1, lambda t: t.t(), "b_q_weight: expected shape"),
    "weights not contiguous": (1, strided, "b_q_weight: expected a contiguous tensor"),
    "weights misaligned": (1, misaligned, "b_q_weight: expected data aligned to 16 bytes"),
    "zeros of int8": (2, lambda t: t.to(torch.int8), "b_qzeros: expected int32, got int8"),
    "zeros with another G": (2, lambda t: t[:1].contiguous(), r"b_qzeros: expected shape \[2, 2\], got \[1, 2\]"),
    "zeros with another N": (2, lambda t: t[:, :1].contiguous(), r"b_qzeros: expected shape \[2, 2\], got \[2, 1\]"),
    "zeros not contiguous": (2, strided, "b_qzeros: expected a contiguous tensor"),
    "scales of another dtype": (3, lambda t: t.bfloat16(), "b_scales: expected float16, got bfloat16"),
    "scales with another N": (3, lambda t: t[:, :8].contiguous(), r"b_scales: expected shape \[2, 16\], got \[2, 8\]"),
    "scales without rows": (3, lambda t: t[:0].contiguous(), "b_scales: expected K / group rows"),
    "groups of 16": (
        3,
        lambda t: torch.cat((t, t)).contiguous(),
        "b_scales: expected K / group rows with a group that is a multiple of 32",
    ),
    "three groups": (3, lambda t: torch.cat((t, t[:1])).contiguous(), "b_scales: expected K / group rows"),
    "scales not contiguous": (3, strided, "b_scales: expected a contiguous tensor"),
    "permutation of int64": (4, lambda t: t.long(), "b_g_idx: expected int32, got int64"),
    "permutation too short": (4, lambda t: t[:32].contiguous(), r"b_g_idx: expected a permutation of shape \[K\] = \[64\]"),
    "permutation with two dimensions": (4, lambda t: t.reshape(8, 8), "b_g_idx: expected a permutation of shape"),
    "permutation not contiguous": (4, strided, "b_g_idx: expected a contiguous tensor"),
    "permutation out of range": (4, lambda t: t + 1, "b_g_idx: expected indices of 0 to 63, got 1 to 64"),
    "permutation negative": (4, lambda t: t - 1, "b_g_idx: expected indices of 0 to 63, got -1 to 62"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_violated_precondition_names_argument_expected_and_got(emulated_op: Any, what: str) -> None:
    position, spoil, message = BAD[what]
    arguments: list[Any] = list(given().arguments)
    arguments[position] = spoil(arguments[position])
    with pytest.raises(RuntimeError, match=f"gptq_gemm_rdna3: {message}"):
        emulated_op(*arguments)


def test_no_rows_give_an_empty_result_without_a_kernel(op: Any) -> None:
    one = given()
    result = op(one.a[:0], *one.arguments[1:])
    assert result.shape == (0, 16)
    assert result.dtype == torch.float16


def test_without_rocm_the_operator_says_what_is_missing(op: Any) -> None:
    if torch.ops.qcompile.rdna3_device_code():
        pytest.skip("this build holds the kernels for gfx1100")
    with pytest.raises(
        RuntimeError, match="expected a tensor on a gfx1100 device with a build of qcompile for ROCm, got one on the CPU"
    ):
        op(*given().arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("m", [1, 5, 17])
def test_the_operator_computes_the_product(emulated_op: Any, m: int, dtype: torch.dtype) -> None:
    one = given(m, 72, 256, 64, dtype)
    assert one.error(emulated_op(*one.arguments)) <= TOLERANCE[dtype]


def test_a_view_that_starts_anywhere_is_copied(emulated_op: Any) -> None:
    one = given()
    assert torch.equal(emulated_op(misaligned(one.a), *one.arguments[1:]), emulated_op(*one.arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("act_order", [False, True])
def test_opcheck(emulated_op: Any, dtype: torch.dtype, act_order: bool) -> None:
    library: Any = torch.library
    library.opcheck(emulated_op, case(3, 24, 64, 32, dtype, act_order=act_order).arguments)


def test_the_fake_kernel_keeps_a_symbolic_number_of_rows(emulated_op: Any) -> None:
    one = given(6)

    def product(a: Tensor) -> Tensor:
        result: Tensor = emulated_op(a, *one.arguments[1:])
        return result * 2

    library: Any = torch
    compiled = library.compile(product, backend="aot_eager", dynamic=True, fullgraph=True)
    for m in (6, 3, 4):
        assert torch.equal(compiled(one.a[:m].contiguous()), product(one.a[:m].contiguous()))


WITHOUT_LIBRARY = """
import torch, qcompile.hardware.native_library
qcompile.hardware.native_library.missing = lambda: "built without"
import qcompile.targets.rdna3_ops as ops
ops.missing = qcompile.hardware.native_library.missing
op = ops.operator()
with torch.device("meta"):
    given = torch.empty(3, 64, dtype=torch.half), torch.empty(8, 16, dtype=torch.int), torch.empty(2, 2, dtype=torch.int)
    print(tuple(op(*given, torch.empty(2, 16, dtype=torch.half), torch.empty(0, dtype=torch.int), True).shape))
try:
    op(torch.zeros(1, 32), *[torch.zeros(1)] * 4, False)
except RuntimeError as error:
    print(error)
"""


def test_without_the_compiled_library_graphs_can_still_be_made() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shape, message = done.stdout.splitlines()[:2]
    assert shape == "(3, 16)"
    assert message.startswith("qcompile::gptq_gemm_rdna3 is not registered")
