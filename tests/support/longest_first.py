"""pytest plug-in: files that take longest come first, so that of several processes (pytest -n) none is left alone with one of them.

pytest-xdist itself begins with the files of most tests, which says little: the four tests of the address sanitizer take a minute.
"""

import pytest

# By the processor seconds that they take, from 60 to 10.
LONGEST = (
    "tests/kernels/test_bounds.py",
    "tests/frontends/test_compressed_tensors.py",
    "tests/run/test_compiled.py",
    "tests/test_spellings.py",
    "tests/test_spellings_together.py",
    "tests/models/",
    "tests/rdna3/test_gfx1100_code.py",
    "tests/rdna3/test_emulated_bounds.py",
    "tests/passes/test_attention.py",
    "tests/kernels/test_rounded.py",
    "tests/kernels/test_vex_vnni.py",
    "tests/test_demo.py",
    "tests/test_bench.py",
    "tests/kernels/test_weight_only.py",
)


def rank(name: str) -> int:
    """Where a test stands in the order, by its name or that of its file; those of one place stay as they are."""
    return next((index for index, prefix in enumerate(LONGEST) if name.startswith(prefix)), len(LONGEST))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes only: one process runs the files in their usual order."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(item.nodeid))
