"""Fixtures of the RDNA3 tests: the emulated kernels, built once per run, on their own or behind the operator."""

import ctypes
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.emulated_rdna3 import Emulator, build

from qcompile.hardware.native_library import missing
from qcompile.targets.rdna3_ops import operator


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(build(tmp_path_factory.mktemp("rdna3") / "libemulated.so"))


@pytest.fixture
def op() -> Any:
    """The compiled operator, as it is in this build."""
    reason = missing()
    assert reason is None, f"{reason}; install with `pip install --no-build-isolation -e .`"
    return operator()


@pytest.fixture
def emulated_op(op: Any, emulator: Emulator) -> Iterator[Any]:
    """The compiled operator with the emulated kernels behind it for tensors on the CPU."""
    spec = find_spec("qcompile._C")
    assert spec is not None
    assert spec.origin is not None
    library: Any = ctypes.CDLL(spec.origin)
    library.qcompile_rdna3_use_launcher(ctypes.cast(emulator.library.qcompile_rdna3_launch, ctypes.c_void_p))
    yield op
    library.qcompile_rdna3_use_launcher(None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
