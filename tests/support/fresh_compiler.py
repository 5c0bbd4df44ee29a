"""pytest plug-in: fixture `fresh_compiler`, for tests whose compilations must not know those of other tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled, decided or counted before the test, and nothing left of it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
