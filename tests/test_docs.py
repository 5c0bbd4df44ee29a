"""The documents name every option, kernel, report field and command that exists, and their code runs."""

import re
import sys
import types
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support.weights import reference

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.cli import COMMANDS, parser
from qcompile.hardware import platform
from qcompile.kernel import site_of
from qcompile.meaning import Operands, QuantizedWeight, sqnr_db
from qcompile.options import Options
from qcompile.reporting.rows import SiteReport
from qcompile.targets.registry import kernels

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / "docs") for path in sorted(folder.glob("*.md"))]


def sources() -> str:
    """All our code as one text."""
    folders = ("passes", "qcompile", "csrc", "tests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if "__pycache__" not in path.parts]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.suffix in {".py", ".cpp", ".h", ".cmake"})


def test_readme_lists_every_kernel_and_no_other() -> None:
    table = README[README.index("## Kernels") : README.index("## Why was")]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9]+\.\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(kernels())


def test_options_page_lists_every_option_with_its_default() -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert named == [field.name for field in fields(Options)]


def test_report_page_lists_every_field() -> None:
    page = (ROOT / "docs" / "report.md").read_text()
    page = page[page.index("| field") : page.index("## Dumps")]
    named = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))))
    assert named == {field.name for field in fields(SiteReport)} - {"identity"}


def test_readme_shows_every_command() -> None:
    block = README[README.index("## Command line") : README.index("## Add a kernel")]
    shown = re.findall(r"^qcompile (\w+)", block, flags=re.MULTILINE)
    assert shown == list(COMMANDS)
    for line in re.findall(r"^qcompile (.*?) +#", block, flags=re.MULTILINE):
        parser().parse_args(line.replace('"', "").split())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index)}
    assert {(ROOT / page).resolve() for page in PAGES} - linked <= {ROOT / "CHANGELOG.md", ROOT / "docs" / "index.md"}


def test_contributing_names_files_and_things_that_exist() -> None:
    code = sources()
    for word in dict.fromkeys(re.findall(r"`([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text())):
        if re.search(r"mine|NAME", word):
            continue  # to be written
        if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)+/?|\w+/", word):
            assert list(ROOT.glob(word.rstrip("/"))), f"CONTRIBUTING.md names {word}"
        elif re.fullmatch(r"[A-Za-z]\w+", word) and re.search(r"[A-Z_]", word):
            assert re.search(rf"\b{word}\b", code) or word == "QUICK", f"CONTRIBUTING.md names {word}"


def test_the_glossary_says_where_things_live() -> None:
    defined = r"(?:class|struct|def|constexpr \w+) (\w+)|^ *(\w+)(?:: |\[?[\w\], ]* = )|m\.def\(\"(\w+)\("
    known = {name for found in re.findall(defined, sources(), re.MULTILINE) for name in found}
    known |= {path.stem for path in (ROOT / "tests").rglob("*.py")}
    page = (ROOT / "docs" / "glossary.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| word", "|---"))]
    assert len(rows) > 60
    for *_, place in rows:
        names = set(re.findall(r"`(\w+)`", place))
        assert (names or "](" in place) and names <= known, f"nothing is called {names - known}"


def test_the_formats_page_names_every_kernel_and_no_other() -> None:
    named = set(re.findall(r"`([a-z0-9]+\.[a-z]\w+)`", (ROOT / "docs" / "formats.md").read_text()))
    assert named - {"config.json", "qcompile.compile"} == set(kernels())


def test_the_quick_tests_are_there() -> None:
    found = re.search(r"^QUICK := ((?:.*\\\n)*.*)\n", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    paths = found[1].replace("\\", " ").split()
    assert len(paths) > 10 and [path for path in paths if not (ROOT / path).exists()] == []


def test_the_kernel_of_the_readme_works(monkeypatch: pytest.MonkeyPatch) -> None:
    block = README[README.index("## Add a kernel") :]
    source = block[block.index("```python") + len("```python") :].partition("```")[0]
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    exec(compile(source, "README.md", "exec"), module.__dict__)
    (kernel,) = module.KERNELS
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (16, 64), generator=generator, dtype=torch.int8)
    plain = QuantizedWeight(codes, torch.rand(16, 2, generator=generator) + 0.1, bits=4, group=32)
    x, bias = torch.randn(2, 3, 64, generator=generator), torch.randn(16, generator=generator)
    perm = torch.randperm(64, generator=generator)
    for weight, extra in ((plain, None), (replace(plain, perm=perm), bias)):
        site = site_of(weight, torch.float32, extra, NO_ACTIVATION_QUANT)
        assert kernel.reasons(site, platform()) == ()
        y = kernel.run(x, kernel.packed(Operands(weight.codes, weight.scales, None, weight.perm, extra), site), site)
        assert sqnr_db(reference(x, weight, extra), y) > 100
    wide = site_of(QuantizedWeight(codes, plain.scales, bits=8, group=32), torch.float32, None, NO_ACTIVATION_QUANT)
    assert kernel.reasons(wide, platform()) == ("takes 4-bit weights, got 8",)
