"""The front door: quantized modules of known libraries get a forward in which the dequantization can be seen and traced."""

from importlib import import_module
from typing import TypeVar

from torch import nn

from qcompile.frontends import notes

# One file each; every one is harmless where its library's modules are absent.
FRONT_DOORS = ("compressed_tensors", "gptq", "awq")

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model) -> Model:
    """Make every quantized module's dequantization visible, in place, and return the model; idempotent.

    A layer whose scheme is not known or whose tensors contradict each other stays as it was, or is made dense by the library that
    made it; the report says why (`fallback="error"` raises).
    """
    for name in FRONT_DOORS:
        import_module(f"qcompile.frontends.{name}").prepare(model)
    notes.register(model)
    return model


def prepared_notes(model: nn.Module) -> dict[str, str]:
    """What the front door has to say about single modules (which zero-point convention was read, what stayed dense), by path."""
    return notes.of_model(model)
