"""Fixtures of the RDNA3 tests: the emulated kernels, built once per run."""

from collections.abc import Iterator

import pytest
import torch

from support.emulated_rdna3 import Emulator, build


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(build(tmp_path_factory.mktemp("rdna3") / "libemulated.so"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
