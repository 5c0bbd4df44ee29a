"""Another distribution brings a format as an entry point; one that cannot be used costs only itself, and says why."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.spellings import F16, G, K, N, Written, linear, scale, uint4
from torch import Tensor

import qcompile
from qcompile.cli import main
from qcompile.formats import others
from qcompile.meaning import sqnr_db
from qcompile.recognize.readers import formats_of_others

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
Install = Callable[..., None]

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with the format of the document, changed as told, and these entry points."""
    block = DOCUMENT[DOCUMENT.index("## Add a format from another") :]
    code = block[block.index("```python") + len("```python") :].partition("```")[0]

    def add(points: str, *changes: tuple[str, str]) -> None:
        text = code
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        info = tmp_path / "another-1.0.dist-info"
        info.mkdir()
        # A name of its own each time: Python keeps imported modules.
        name = f"format_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[qcompile.formats]\n{points.replace('MODULE', name)}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        others.readers.cache_clear()

    monkeypatch.setattr(others, "_failed", {})
    others.readers.cache_clear()
    yield add
    others.readers.cache_clear()


def model(offset: int = 8) -> Written:
    torch.manual_seed(3)
    codes = uint4().to(torch.int32).reshape(N, -1, 4)
    packed = (codes << torch.arange(0, 16, 4)).sum(-1)

    def forward(m: Written, x: Tensor) -> Tensor:
        unpacked: Tensor = (m.q.unsqueeze(-1) >> torch.arange(0, 16, 4, dtype=torch.int16)) & 15  # type: ignore[operator]
        return linear(x, ((unpacked.reshape(N, -1, G) - offset) * m.s[..., None]).reshape(N, K))  # type: ignore[index]

    return Written(forward, {"q": packed.to(torch.int16), "s": scale(N, K // G, dtype=F16)}).eval()


def served(written: Written) -> str:
    """Who read the weight, once the result is right."""
    x = torch.randn(3, K).to(F16)
    options: dict[str, Any] = {"rest": "eager", "kernels": ["reference"]}
    compiled = torch.compile(written, backend="qcompile", options=options)
    with torch.no_grad():
        assert sqnr_db(written(x), compiled(x)) >= 40
    (row,) = qcompile.report().sites
    assert row.kernel == "reference.quantized_linear"
    return row.recognized_by


def test_the_format_of_the_document_is_read(install: Install) -> None:
    install("mine = MODULE")
    assert formats_of_others() == {"mine": ""}
    assert served(model()) == "mine"
    assert formats_of_others() == {"mine": ""}


def test_what_it_proposes_is_compared_by_value(install: Install) -> None:
    """Its codes are one off: the weight is recovered from its values instead."""
    install("mine = MODULE")
    assert served(model(offset=7)) == "lattice"
    assert formats_of_others() == {"mine": ""}


@pytest.mark.parametrize(
    ("points", "name", "sentence"),
    [
        ("gone = no_such_module", "gone", "it cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("empty = json", "empty", "it cannot be loaded: AttributeError"),
        ("front_door = MODULE", "", "the name front_door is taken"),
        ("lattice = MODULE", "", "the name lattice is taken"),
    ],
)
def test_one_that_cannot_be_loaded_costs_only_itself(install: Install, points: str, name: str, sentence: str) -> None:
    install(points)
    ((found, reason),) = formats_of_others().items()
    assert sentence in reason and (not name or found == name)
    assert served(model()) == "lattice"


YIELD = 'yield Proposal("my format", bits=4, group=32, unpack=unpack)'


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (YIELD, "raise RuntimeError('a bug')\n    " + YIELD, "RuntimeError: a bug"),
        (YIELD, "yield unpack", "propose gives function, not Proposal"),
        (YIELD, YIELD.replace("bits=4", "bits=9"), "bits"),
        (YIELD, YIELD.replace("group=32", "group=16"), "scales"),
        (YIELD, YIELD.replace("group=32", "group=32.0"), "must be integers"),
        (YIELD, YIELD.replace("bits=4", "bits=4, symmetric=False"), "symmetric, act_order and offset must say"),
        (YIELD, YIELD.replace("bits=4", "bits=4, act_order=True"), "symmetric, act_order and offset must say"),
        (YIELD, YIELD.replace("bits=4", "bits=4, codebook='mine'"), "codebook"),
        ("return Operands((codes.reshape(n, k) - 8)", "return Operands((codes.reshape(k, n) - 8)", "unpack gives codes [64, 48]"),
        ("return Operands(", "return tuple(", "TypeError"),
        ("        codes = (leaves", "        leaves[first].sub_(1)\n        codes = (leaves", "unpack writes to its leaves"),
        ("leaves[second])", "leaves[second], bias=leaves[second])", "without bias"),
        ("- 8)", "- int(leaves[first][0, 0]))", "it failed"),
    ],
)
def test_one_that_fails_costs_only_itself(
    install: Install, before: str, after: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    install("mine = MODULE", (before, after))
    written = model()
    kept = {name: tensor.clone() for name, tensor in written.named_buffers()}
    assert served(written) == "lattice"
    assert sentence in formats_of_others()["mine"]
    assert sum("does without the format mine" in record.message for record in caplog.records) == 1
    assert all(torch.equal(tensor, kept[name]) for name, tensor in written.named_buffers())


def test_rows_that_share_scales_are_not_believed(install: Install) -> None:
    install("mine = MODULE", (YIELD, YIELD.replace("bits=4", "bits=4, rows=n")))
    assert served(model()) == "mine"


def test_columns_that_are_left_out_are_noticed(install: Install) -> None:
    """Its codes agree with the columns that it names, but one is named twice."""
    unpacked = "(codes.reshape(n, k) - 8).to(torch.int8)"
    perm = "torch.arange(k, dtype=torch.int64, device=codes.device).clamp(min=1)"
    install(
        "mine = MODULE",
        ("        return Operands(", f"        perm = {perm}\n        return Operands("),
        (f"{unpacked}, leaves[second]", f"{unpacked}.index_select(1, perm), leaves[second], perm=perm"),
        ("bits=4", "bits=4, act_order=True"),
    )
    assert served(model()) == "lattice"
    assert formats_of_others() == {"mine": ""}


def test_the_command_names_them(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mine = MODULE\ngone = no_such_module")
    assert main(["platform"]) == 0
    shown = capsys.readouterr().out
    assert "format mine: read by another distribution" in shown and "format gone: it cannot be loaded" in shown
    assert main(["platform", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["formats"]
    assert found["mine"] == "" and "no_such_module" in found["gone"]
