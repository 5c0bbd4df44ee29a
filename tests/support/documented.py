"""The shell commands that README, CONTRIBUTING, SECURITY, docs/*.md and the opening words of bench/*.py show, as they stand there."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted((ROOT / "docs").glob("*.md")))
# Settings, then one of our commands and at least one word; `pip` and `python` alone are names.
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:python|pip|make|qcompile|\.ci/\S+)(?: +\S.*)?")
TRAILING = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Shown:
    """One command and where it stands."""

    place: str
    command: str


def in_page(path: Path) -> list[Shown]:
    """Every line of the blocks marked `sh`, and every command in backquotes in the text."""
    found, block = [], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path.name}:{number}"
        if line.startswith("```"):
            block = "" if block else line[3:].strip() or "text"
        elif block == "sh" and line.strip():
            found.append(Shown(place, TRAILING.sub("", line).strip()))
        elif not block:
            inline = [text for text in re.findall(r"`([^`]+)`", line) if " " in text and COMMAND.fullmatch(text)]
            found += [Shown(place, text) for text in inline]
    return found


def in_docstring(path: Path) -> list[Shown]:
    """The indented lines of a module's docstring that are commands."""
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    return [Shown(path.name, line.strip()) for line in lines if line.startswith("    ") and COMMAND.fullmatch(line.strip())]


def shown() -> list[Shown]:
    """All of them, in the order of the pages."""
    pages = [entry for page in PAGES for entry in in_page(page)]
    return pages + [entry for path in sorted((ROOT / "bench").glob("*.py")) for entry in in_docstring(path)]
