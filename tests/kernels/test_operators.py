"""The native operators behave as torch expects: opcheck, tracing with symbolic rows, several Python threads, forced levels."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from support.native_weights import LEVELS, activations, require_kernels, weight
from torch import Tensor

from qcompile.targets.native_ops import levels

OPS = torch.ops.qcompile


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    require_kernels()


def samples() -> list[tuple[Any, tuple[Any, ...]]]:
    four, eight = weight(24, 64, 32, zeros=True), weight(24, 64, 64, bits=8)
    x, perm, bias = activations(6, 64, torch.bfloat16).reshape(2, 3, 64), torch.randperm(64), torch.randn(24)
    scale, zero = torch.tensor([0.1]), torch.tensor([3.0])
    return [
        (OPS.native_int4_pack.default, (four.codes, four.scales, four.zeros, 32)),
        (OPS.native_int8_pack.default, (eight.codes, eight.scales, None, 64)),
        (OPS.native_int4_linear.default, (x, four.pack(), perm, bias, 24, 64, 32)),
        (OPS.native_int8_a16_linear.default, (x, eight.pack(), None, bias, 24, 64, 64)),
        (OPS.native_int8_linear.default, (x, eight.pack(), perm, None, scale, zero, 24, 64, 64, 2, 127.0, -127.0, False)),
        (OPS.native_int4_a8_linear.default, (x, four.pack(), None, None, None, None, 24, 64, 32, 3, 127.0, -127.0, False)),
    ]


@pytest.mark.parametrize("index", range(6))
def test_opcheck(index: int) -> None:
    if not levels():
        pytest.skip("built without kernels")
    op, arguments = samples()[index]
    torch.library.opcheck(op, arguments)


def test_every_operator_is_checked() -> None:
    checked = {op.name().split("::")[1] for op, _ in samples()}
    names = {
        schema.name.split("::")[1] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("qcompile::native_int")
    }
    assert names == checked


def test_rows_stay_symbolic() -> None:
    w = weight(24, 64, 32)
    packed = w.pack()
    calls: list[int] = []

    def backend(module: torch.fx.GraphModule, _: list[Any]) -> Any:
        calls.append(1)
        return module

    @torch.compile(backend=backend, dynamic=True)
    def run(x: Tensor) -> Tensor:
        y: Tensor = OPS.native_int4_linear(x, packed, None, None, 24, 64, 32)
        return y

    for m in (2, 3, 9, 40):
        x = activations(m, 64, torch.bfloat16)
        assert torch.equal(run(x), OPS.native_int4_linear(x, packed, None, None, 24, 64, 32))
    assert len(calls) == 1


def test_several_python_threads() -> None:
    four, eight = weight(256, 512, 128, zeros=True), weight(256, 512, 512, bits=8)
    packed_four, packed_eight = four.pack(), eight.pack()
    inputs = [activations(m, 512, torch.bfloat16, seed=m) for m in (1, 3, 14, 40)]

    def all_of_it() -> list[Tensor]:
        results = []
        for x in inputs:
            results.append(OPS.native_int4_linear(x, packed_four, None, None, 256, 512, 128))
            results.append(OPS.native_int8_linear(x, packed_eight, None, None, None, None, 256, 512, 512, 0, 127.0, -127.0, False))
            results.append(OPS.native_int4_pack(four.codes, four.scales, four.zeros, 128))
        return results

    wanted = all_of_it()
    wrong: list[str] = []

    def work() -> None:
        for _ in range(4):
            if not all(torch.equal(a, b) for a, b in zip(all_of_it(), wanted, strict=True)):
                wrong.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def in_process(level: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch; from qcompile.targets.native_ops import missing_ops\n"
        "reason = missing_ops(); print(reason or torch.ops.qcompile.native_isa(-1))"
    )
    environment = {**os.environ, "QCOMPILE_ISA": level, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_a_level_can_be_forced() -> None:
    done = in_process(LEVELS[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == LEVELS[-1] == "generic"


def test_an_unknown_level_lists_the_known_ones() -> None:
    done = in_process("avx9000")
    assert f"QCOMPILE_ISA: expected one of the levels of this machine ({', '.join(LEVELS)}), got 'avx9000'" in done.stdout


def test_levels_are_in_order() -> None:
    best_first = ("avx512_bf16", "avx512", "avx2_vnni", "avx2", "generic")
    assert list(LEVELS) == [level for level in best_first if level in LEVELS]
    assert OPS.native_isa(-1) in LEVELS
