"""What the front doors have to say about single layers, kept on the modules, and its way into the report."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from weakref import WeakSet

from torch import Tensor, nn

from qcompile.errors import UnservedError
from qcompile.reporting.rows import SiteReport

NOTE, DECLINED = "qcompile_note", "qcompile_declined"


@dataclass(frozen=True, slots=True)
class Declined:
    """Why a quantized layer is not served; format, n and k as in SiteReport where they are known."""

    reason: str
    format: str = ""
    n: int = 0
    k: int = 0


# Models that have something to say, for as long as they live.
_models: WeakSet[nn.Module] = WeakSet()


def note(module: nn.Module, text: str) -> None:
    """Say something about a layer that is served, or left to be read by value."""
    module.__dict__[NOTE] = text


def decline(module: nn.Module, why: Declined) -> None:
    """Say why a layer is not served: it gets a row of its own in the report."""
    module.__dict__[DECLINED] = why


def register(model: nn.Module) -> None:
    """Remember a prepared model if any of its layers has something to say."""
    if any(NOTE in module.__dict__ or DECLINED in module.__dict__ for module in model.modules()):
        _models.add(model)


def of_model(model: nn.Module) -> dict[str, str]:
    """All that is said about layers of the model, by path: notes, and reasons why a layer is not served."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        why = module.__dict__.get(DECLINED)
        text = why.reason if isinstance(why, Declined) else module.__dict__.get(NOTE, "")
        if text:
            found[path] = str(text)
    return found


def declined_rows(model: nn.Module) -> list[SiteReport]:
    """One row for every layer of the model that a front door did not serve."""
    rows: list[SiteReport] = []
    for path, module in model.named_modules():
        why = module.__dict__.get(DECLINED)
        if isinstance(why, Declined):
            rows.append(SiteReport(module=path, format=why.format, n=why.n, k=why.k, declined=why.reason))
    return rows


def added(rows: Iterable[SiteReport], constants: Iterable[Tensor], strict: bool = False) -> list[SiteReport]:
    """The rows of a graph that reads these constants, with what the front doors said about the layers of their model.

    strict: a layer that a front door did not serve raises UnservedError.
    """
    given = list(rows)
    read = {id(tensor) for tensor in constants}
    for model in list(_models):
        if not any(id(tensor) in read for tensor in (*model.parameters(), *model.buffers())):
            continue
        texts = {path: module.__dict__[NOTE] for path, module in model.named_modules() if NOTE in module.__dict__}
        given = [_with_note(row, texts.get(row.module, "")) for row in given]
        named = {row.module for row in given}
        declined = declined_rows(model)
        if strict and declined:
            raise UnservedError(f"{row.module}: {row.declined}" for row in declined)
        given += [row for row in declined if row.module not in named]
    return given


def _with_note(row: SiteReport, text: str) -> SiteReport:
    if not text or text in row.note:
        return row
    return replace(row, note=f"{row.note}; {text}" if row.note else text)
