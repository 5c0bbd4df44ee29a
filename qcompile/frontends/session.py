"""What one call of `qcompile.load` carries through transformers' loading: the folder, its headers, and what happened on the way."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from qcompile.errors import CheckpointError, QCompileError, WeightError
from qcompile.frontends.folder import Headers
from qcompile.frontends.other_layers import Lent


@dataclass(slots=True)
class Session:
    """One call of load.

    folder    what errors call it; entry: the checked quantization_config, None for a folder that is not quantized
    chosen    whether the caller chose the model's class, which then need not have room for all that the files hold
    headers   every tensor of the files, by its name in the files
    stems     path of a quantized layer in the model -> its name in the files
    problem   an error of ours that transformers caught
    foreign   layers that the library which made the checkpoint has to make dense, by path, and why
    schemes, dtypes  the library's scheme of such a layer, and the dtype that its weight gets, by path
    lent      layers that are no linears and pose as one while they are read, by path
    version, version_note  GPTQ's zero-point convention of merged layers, and how it was decided
    merged    how many quantized layers of a module were made dense because transformers keeps them in one tensor, by path
    """

    folder: str
    entry: dict[str, Any] | None
    chosen: bool = False
    headers: Headers = field(default_factory=lambda: {})
    stems: dict[str, str] = field(default_factory=lambda: {})
    problem: QCompileError | None = None
    foreign: dict[str, str] = field(default_factory=lambda: {})
    schemes: dict[str, Any] = field(default_factory=lambda: {})
    dtypes: dict[str, torch.dtype] = field(default_factory=lambda: {})
    lent: dict[str, Lent] = field(default_factory=lambda: {})
    version: int = 0
    version_note: str = ""
    merged: dict[str, int] = field(default_factory=lambda: {})

    def file_of(self, name: str) -> str:
        """The file that holds the tensor of that name in the model, or another tensor of its layer; the folder if none does."""
        path, _, part = name.partition(":")[0].rpartition(".")
        stem = self.stems.get(path, path)
        found = self.headers.get(f"{stem}.{part}") or self.headers.get(name)
        if found is None:
            found = next((tensor for key, tensor in self.headers.items() if key.startswith(f"{stem}.")), None)
        return found.file if found is not None else self.folder

    def error(self, problem: WeightError) -> CheckpointError:
        """The error about a layer's tensors as one about the folder's files."""
        if isinstance(problem, CheckpointError):
            return problem
        return CheckpointError(self.file_of(problem.argument), problem.argument, problem.expected, problem.got)


_current: ContextVar[Session | None] = ContextVar("qcompile_loading", default=None)


@contextmanager
def loading(session: Session) -> Generator[Session]:
    """While active, `current()` is this session; calls within one another have one each."""
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def current() -> Session:
    """The session of the call of load that is going on."""
    found = _current.get()
    if found is None:
        raise RuntimeError("qcompile's loading was called by something other than qcompile.load")
    return found
