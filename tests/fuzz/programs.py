"""A program that dequantizes and multiplies: its source text, the constants of each of its layers, and x."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

Remake = Callable[[Random, bool], tuple[Tensor, str]]


class DoesNotRunError(Exception):
    """A line that cannot be computed: the writer tries another."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A constant of a site: its first content in words, and what makes other contents of the same shape and dtype (extreme ones if asked)."""

    tensor: Tensor
    words: str
    remake: Remake


@dataclass(slots=True, eq=False)
class Body:
    """The text of one site, def site(x, **parameters), written line by line; each line is run on real tensors at once."""

    x: Tensor
    parameters: dict[str, Parameter] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values.update({"torch": torch, "F": torch.nn.functional, "x": self.x})

    def constant(self, name: str, remake: Remake, rng: Random, extreme: bool = False) -> str:
        """A parameter of this name."""
        tensor, words = remake(rng, extreme)
        self.parameters[name] = Parameter(tensor, words, remake)
        self.values[name] = tensor
        return name

    def say(self, text: str) -> str:
        """`v7 = text`; the name v7. DoesNotRunError if torch refuses it."""
        name = f"v{len(self.lines)}"
        try:
            with torch.no_grad():
                value = eval(text, self.values)
        except Exception as error:
            raise DoesNotRunError(text) from error
        self.values[name] = value
        self.lines.append(f"{name} = {text}")
        return name

    def dtype(self, name: str) -> str:
        """As it is written in source: torch.bfloat16."""
        return str(self.values[name].dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def source(self, name: str) -> str:
        head = f"def {name}({', '.join(['x', *self.parameters])}):"
        result = self.lines[-1].split(" = ", 1)[0]
        return "\n    ".join([head, *self.lines, f"return {result}"])


@dataclass(slots=True, eq=False)
class Program:
    """forward(x, *constants) -> tuple of results: one of its bodies for each layer, with that layer's constants."""

    bodies: list[Body]
    layers: list[tuple[int, dict[str, Tensor], str]]  # which body, its constants, their contents in words
    x: Tensor
    together: bool = False  # one more result: the sum of all

    def names(self) -> list[str]:
        return [f"{name}_{number}" for number, (_, tensors, _) in enumerate(self.layers) for name in tensors]

    def tensors(self) -> list[Tensor]:
        return [tensor for _, tensors, _ in self.layers for tensor in tensors.values()]

    def source(self) -> str:
        texts = [body.source(f"site_{number}") for number, body in enumerate(self.bodies)]
        calls = []
        for number, (body, tensors, _) in enumerate(self.layers):
            given = ", ".join(["x", *(f"{name}_{number}" for name in tensors)])
            calls.append(f"    y_{number} = site_{body}({given})")
        results = [f"y_{number}" for number in range(len(self.layers))]
        if self.together:
            results.append(" + ".join(results))
        head = f"def forward({', '.join(['x', *self.names()])}):"
        return "\n".join([*texts, head, *calls, f"    return ({', '.join(results)},)"])

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
        exec(compile(self.source(), "<program>", "exec"), space)
        return space["forward"]  # type: ignore[no-any-return]

    def describe(self) -> str:
        constants = [f"# layer {number}: {words}" for number, (_, _, words) in enumerate(self.layers)]
        given = f"# x: {str(self.x.dtype)[6:]} {list(self.x.shape)}"
        return "\n".join([self.source(), given, *constants])


def layer(body: Body, rng: Random, extreme: bool | None) -> tuple[dict[str, Tensor], str]:
    """Constants for one more layer of this body: its own first ones (extreme=None), or others."""
    tensors, words = {}, []
    for name, parameter in body.parameters.items():
        tensor, text = (parameter.tensor, parameter.words) if extreme is None else parameter.remake(rng, extreme)
        tensors[name] = tensor
        words.append(f"{name} {str(tensor.dtype)[6:]} {list(tensor.shape)} {text}")
    return tensors, "; ".join(words)
