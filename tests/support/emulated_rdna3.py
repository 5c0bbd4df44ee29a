"""Builds the kernels of csrc/rocm with the host emulation into a library, and calls its raw-pointer launcher."""

import ctypes
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompile.targets.rdna3_ops import packed_codes, packed_zeros

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests/emulation"
SOURCES = (ROOT / "csrc/rocm/gptq_gemm_rdna3.hip", ROOT / "csrc/rocm/dispatch.cpp", EMULATION / "emulation.cpp")
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-DQCOMPILE_EMULATION", f"-I{EMULATION}", f"-I{ROOT / 'csrc/rocm'}")
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 5e-3}  # relative L2 error that every path has to keep

_POINTERS = ("a", "qweight", "qzeros", "scales", "perm", "out", "workspace", "stream")
_NUMBERS = ("m", "n", "k", "group", "zero_offset", "bf16", "path", "splits")


class Problem(ctypes.Structure):
    """`qcompile_rdna3_problem` of csrc/rocm/launch.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in _POINTERS), *((name, ctypes.c_int32) for name in _NUMBERS)]


class Plan(ctypes.Structure):
    """`qcompile_rdna3_plan` of csrc/rocm/launch.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("path", "splits", "grid_x", "grid_y", "grid_z", "threads", "gathers")),
        ("microseconds", ctypes.c_double),
    ]


@dataclass
class Case:
    """Arguments of one product and its result in float64."""

    a: Tensor
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    perm: Tensor
    v2: bool
    group: int
    expected: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
        return self.a, self.qweight, self.qzeros, self.scales, self.perm, self.v2

    def error(self, result: Tensor) -> float:
        """Relative L2 error of a result; nan if it has one."""
        return float(((result.double() - self.expected).square().sum() / self.expected.square().sum()).sqrt())


def case(
    m: int, n: int, k: int, group: int, dtype: torch.dtype, *, act_order: bool = False, v2: bool = False, seed: int = 0
) -> Case:
    """A random product; zero points are 1 .. 16 for format v1 and 0 .. 15 for v2, all of them if there are enough groups."""
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n, k), generator=made, dtype=torch.int8)
    first = 0 if v2 else 1
    zeros = (torch.arange(n * (k // group)) % 16 + first).to(torch.int8).reshape(k // group, n).t()
    scales = (torch.rand((n, k // group), generator=made) * 0.01 + 0.005).to(dtype)
    a = torch.randn((m, k), generator=made).to(dtype)
    order = torch.randperm(k, generator=made)
    perm = order.to(torch.int32) if act_order else torch.empty(0, dtype=torch.int32)
    levels = codes.double().reshape(n, k // group, group) - zeros.double()[:, :, None]
    weight = (levels * scales.double()[:, :, None]).reshape(n, k)
    rows = a.double()[:, order] if act_order else a.double()
    packed = packed_codes(codes, n, k, 0), packed_zeros(zeros, n, k // group, -first), scales.t().contiguous()
    return Case(a, *packed, perm, v2, group, rows @ weight.t())


class Emulator:
    """The library with the emulated kernels."""

    def __init__(self, path: Path) -> None:
        library: Any = ctypes.CDLL(str(path))
        library.qcompile_rdna3_launch.restype = ctypes.c_char_p
        library.qcompile_rdna3_make_plan.restype = ctypes.c_char_p
        library.qcompile_rdna3_path_name.restype = ctypes.c_char_p
        library.qcompile_rdna3_workspace.restype = ctypes.c_size_t
        self.library = library
        self.paths: list[str] = []
        while (name := library.qcompile_rdna3_path_name(len(self.paths))) is not None:
            self.paths.append(name.decode())

    def plan(
        self, m: int, n: int, k: int, group: int, dtype: torch.dtype, *, path: str = "", splits: int = 0, perm: bool = False
    ) -> Plan:
        """What the launcher would run; RuntimeError with its reason if it refuses."""
        index = self.paths.index(path) if path else -1
        problem = Problem(
            m=m, n=n, k=k, group=group, bf16=dtype == torch.bfloat16, path=index, splits=splits, perm=1 if perm else None
        )
        plan = Plan()
        reason = self.library.qcompile_rdna3_make_plan(ctypes.byref(problem), ctypes.byref(plan))
        if reason is not None:
            raise RuntimeError(reason.decode())
        return plan

    def run(self, given: Case, path: str = "", splits: int = 0) -> Tensor:
        """The product by the named path (the model's choice if empty); RuntimeError with the launcher's reason."""
        (m, k), n = given.a.shape, given.qweight.shape[1]
        out = torch.full((m, n), float("nan"), dtype=given.a.dtype)
        problem = Problem(
            a=given.a.data_ptr(),
            qweight=given.qweight.data_ptr(),
            qzeros=given.qzeros.data_ptr(),
            scales=given.scales.data_ptr(),
            perm=given.perm.data_ptr() if given.perm.numel() else None,
            out=out.data_ptr(),
            m=m,
            n=n,
            k=k,
            group=given.group,
            zero_offset=0 if given.v2 else 1,
            bf16=given.a.dtype == torch.bfloat16,
            path=self.paths.index(path) if path else -1,
            splits=splits,
        )
        workspace = torch.full((max(16, self.library.qcompile_rdna3_workspace(ctypes.byref(problem))),), 255, dtype=torch.uint8)
        problem.workspace = workspace.data_ptr()
        reason = self.library.qcompile_rdna3_launch(ctypes.byref(problem))
        if reason is not None:
            raise RuntimeError(reason.decode())
        return out


def build(output: Path, *extra: str) -> Path:
    """Compile the emulated kernels; `extra`: more sources or flags, such as a sanitizer's."""
    compiler = os.environ.get("CXX", "g++")
    defaults = ("-O2", "-march=native", "-fPIC", "-shared")
    command = [compiler, *FLAGS, *(extra or defaults), "-x", "c++", *map(str, SOURCES), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return output
