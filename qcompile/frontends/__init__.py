"""The front door: quantized modules of known libraries get a forward in which the dequantization can be seen and traced."""

from importlib import import_module
from typing import TypeVar

from torch import nn

# One file each; every one is harmless where its library's modules are absent.
FRONT_DOORS = ("compressed_tensors", "gptq", "awq")

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model) -> Model:
    """Make every quantized module's dequantization visible, in place, and return the model; idempotent.

    Raises UnsupportedSchemeError or WeightError, both naming the module, before anything is changed by that library's front door.
    """
    for name in FRONT_DOORS:
        import_module(f"qcompile.frontends.{name}").prepare(model)
    return model


def prepared_notes(model: nn.Module) -> dict[str, str]:
    """What the front door has to say about single modules (which zero-point convention was read, what stayed dense), by path."""
    found = {path: module.__dict__.get("qcompile_note", "") for path, module in model.named_modules()}
    return {path: note for path, note in found.items() if note}
