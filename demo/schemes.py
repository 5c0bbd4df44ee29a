"""The three ways in which the demonstration quantizes, as folder name -> arguments of compressed-tensors."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

import qcompile
from qcompile.frontends.quantize import quantize

SCHEMES: dict[str, dict[str, Any]] = {
    "w4a16": {"bits": 4, "group": 128},
    "w4a16-asym": {"bits": 4, "group": 32, "symmetric": False},
    "w8a8": {"bits": 8, "group": None, "activations": "dynamic"},
}
TITLES = {
    "w4a16": "W4A16, group 128, symmetric",
    "w4a16-asym": "W4A16, group 32, asymmetric",
    "w8a8": "W8A8, per channel, dynamic per token",
}
EXPLAINED = ("w4a16", "w8a8")  # the asymmetric one's refused kernels are nearly those of w4a16


def folder_of(output: Path, model: str, scheme: str) -> Path:
    return output / f"{model}-{scheme}"


def make(folder: Path, scheme: str, float_model: Callable[[], Any], tokenizer: Any = None) -> None:
    """Quantize float_model() with compressed-tensors and save it to `folder`, unless it is there already."""
    done = folder / "complete"
    if done.exists():
        return
    with redirect_stderr(io.StringIO()):  # the libraries' own progress bars
        quantize(float_model(), folder, **SCHEMES[scheme])
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    done.touch()


def load(folder: Path, model_class: str) -> Any:
    """With transformers as usual; an asymmetric folder with qcompile.load, because transformers cannot read its zero points."""
    if folder.name.endswith("-asym"):
        return qcompile.load(folder)
    with redirect_stderr(io.StringIO()):
        return getattr(import_module("transformers"), model_class).from_pretrained(folder).eval()
