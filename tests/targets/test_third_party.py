"""Another distribution brings a target as an entry point; one that cannot be loaded costs only itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.weights import random_weight, reference

from qcompile import pack_linear
from qcompile.errors import UnknownNameError
from qcompile.meaning import sqnr_db
from qcompile.targets.registry import TARGETS, kernels, settings, table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with the kernel of the README and these entry points."""
    block = README[README.index("## Add a kernel") :]
    (tmp_path / "kernel_of_another.py").write_text(block[block.index("```python") + len("```python") :].partition("```")[0])

    def add(points: str) -> None:
        info = tmp_path / "another-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[qcompile.targets]\n{points}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        kernels.cache_clear()

    yield add
    kernels.cache_clear()


def test_its_kernel_is_one_of_the_table(install: Install) -> None:
    with pytest.raises(UnknownNameError):
        settings({"kernels": ["mine"]})
    install("mine = kernel_of_another")
    assert table()["mine.int4"] == ()
    assert settings({"kernels": ["mine"], "disable": ["mine.int4"]}).kernels == ("mine",)
    weight, x = random_weight(32, 128, 32), torch.randn(3, 128)
    assert sqnr_db(reference(x, weight), pack_linear(weight, "mine.int4", dtype=torch.float32)(x)) > 100


@pytest.mark.parametrize(
    ("point", "name", "sentence"),
    [
        ("gone = no_such_module", "gone.unavailable", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("empty = json", "empty.unavailable", "AttributeError: module 'json' has no attribute 'KERNELS'"),
        ("other = kernel_of_another", "other.unavailable", "must be called other.…"),
        ("native = kernel_of_another", "native.unavailable", "own targets cannot be replaced"),
    ],
)
def test_a_broken_one_costs_only_itself(install: Install, point: str, name: str, sentence: str) -> None:
    before = set(kernels())
    install(point)
    (reason,) = table()[name]
    assert reason.startswith("the target cannot be loaded: ") and sentence in reason
    assert set(kernels()) == {*before, name}
    assert all(row.target in TARGETS for key, row in kernels().items() if key != name)
