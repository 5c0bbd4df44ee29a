"""The documents name every option, kernel, report field and command that exists, and their code runs."""

import re
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from qcompile.cli import COMMANDS, parser
from qcompile.hardware import platform
from qcompile.kernel import site_of
from qcompile.meaning import NO_ACTIVATION_QUANT, Operands, QuantizedWeight, sqnr_db
from qcompile.options import Options
from qcompile.reporting.rows import SiteReport
from qcompile.targets.registry import kernels

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("page", ["README.md", "docs/options.md", "docs/report.md", "docs/memory.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_kernel_of_the_readme_works(monkeypatch: pytest.MonkeyPatch) -> None:
    block = README[README.index("## Add a kernel") :]
    source = block[block.index("```python") + len("```python") :].partition("```")[0]
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    exec(compile(source, "README.md", "exec"), module.__dict__)
    (kernel,) = module.KERNELS
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (16, 64), generator=generator, dtype=torch.int8)
    weight = QuantizedWeight(codes, torch.rand(16, 2, generator=generator) + 0.1, bits=4, group=32)
    site = site_of(weight, torch.float32, None, NO_ACTIVATION_QUANT)
    assert kernel.reasons(site, platform()) == ()
    x = torch.randn(3, 64, generator=generator)
    packed = kernel.pack(Operands(weight.codes, weight.scales), site)
    assert sqnr_db(x @ weight.dequantize().T, kernel.call(x, packed, site)) > 100
    wide = site_of(QuantizedWeight(codes, weight.scales, bits=8, group=32), torch.float32, None, NO_ACTIVATION_QUANT)
    assert kernel.reasons(wide, platform()) == ("takes 4-bit weights, got 8",)
