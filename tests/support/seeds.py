"""pytest plug-in: every test begins with a seed of its own, so that it sees the same random tensors alone, in the suite and tomorrow."""

import os
import random
import zlib

import pytest
import torch

# Another number gives other random tensors to every test.
SHIFT = int(os.environ.get("QCOMPILE_TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures, which make tensors as well."""
    seed = zlib.crc32(item.nodeid.encode()) + SHIFT
    random.seed(seed)
    torch.manual_seed(seed)
