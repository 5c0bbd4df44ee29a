"""Random dequantization graphs and near misses of known ones, compiled and compared with eager; again after weights changed."""

import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from torch import Tensor, fx

from fuzz import Outcome, contents
from fuzz.chains import ROWS, random_shape, write
from fuzz.near_misses import near_miss
from fuzz.programs import Body, DoesNotRunError, Program, layer
from fuzz.trial import Trial, WholeTrial, capture
from qcompile.graph.nodes import LOW_BIT

SHARE_OF_NEAR_MISSES = 0.3
SHARE_OF_WHOLE_COMPILES = 0.03
ROUNDS = 3  # how often a captured graph is compiled, each time with other constants
Remade = Callable[[str, Random], tuple[Tensor, str]]


def case(seed: int, folder: Path | None = None) -> Outcome:
    """One graph of this seed, compiled with ROUNDS sets of constants; counts each."""
    del folder
    rng = Random(seed)
    text, served, rounds = "", False, 0
    try:
        kind = rng.random()
        if kind > 1 - SHARE_OF_WHOLE_COMPILES:
            return _whole(rng)
        gm, inputs, names, text, remade, cancelled = _near_miss(rng) if kind < SHARE_OF_NEAR_MISSES else _random(rng)
        words = ""
        for rounds in range(1, ROUNDS + 1):
            # What was proven for the first constants is remembered when the others come.
            trial = Trial(gm, inputs, names, cancelled=cancelled, forget=rounds == 1)
            wrong = judge(trial, rng, remade)
            if wrong:
                return Outcome("crash" if wrong.startswith("inside") else "wrong", f"{wrong}\n{text}\n{words}", rounds)
            served |= trial.served()
            others = [remade(name, rng) for name in names[1:]]
            inputs = [inputs[0], *(tensor for tensor, _ in others)]
            words = "then " + "; ".join(f"{name} {what}" for name, (_, what) in zip(names[1:], others, strict=True))
    except Exception:
        return Outcome("crash", f"{traceback.format_exc(limit=-6)}\n{text}", max(rounds, 1))
    return Outcome("right" if served else "declined", "", rounds)


def _whole(rng: Random) -> Outcome:
    """A program through torch.compile, as users do it, and again after its weights changed."""
    program = random_program(rng)
    inputs, names = [program.x, *program.tensors()], ["x", *program.names()]
    gm = capture(program.function(), inputs)
    try:
        trial = WholeTrial(gm, program.function(), inputs, names, cancelled=_cancels(program))
        wrong = judge(trial, rng, _remade(program))
    except Exception:
        return Outcome("crash", f"torch.compile: {traceback.format_exc(limit=-6)}\n{program.describe()}")
    if wrong:
        return Outcome("crash" if wrong.startswith("inside") else "wrong", f"torch.compile: {wrong}\n{program.describe()}")
    silent = not trial.rows and any(tensor.dtype in LOW_BIT for tensor in program.tensors())
    if silent:
        return Outcome("silent", f"torch.compile: no row of the report explains a low-bit constant\n{program.describe()}")
    return Outcome("right" if trial.served() else "declined")


def _near_miss(rng: Random) -> tuple[fx.GraphModule, list[Tensor], list[str], str, Remade, bool]:
    gm, inputs, names, words = near_miss(rng)
    return gm, inputs, names, f"{words}\n{gm.code}", _other_content(inputs, names), True


def _random(rng: Random) -> tuple[fx.GraphModule, list[Tensor], list[str], str, Remade, bool]:
    program = random_program(rng)
    inputs = [program.x, *program.tensors()]
    gm = capture(program.function(), inputs)
    return gm, inputs, ["x", *program.names()], program.describe(), _remade(program), _cancels(program)


def random_program(rng: Random) -> Program:
    """One to three layers of one or two bodies; layers of one body differ in what their constants hold."""
    dtype = rng.choice((torch.float32, torch.bfloat16, torch.bfloat16, torch.float16))
    while True:
        shape = random_shape(rng)
        rows: tuple[int, ...] = (rng.choice(ROWS),) if rng.random() < 0.8 else (2, rng.choice(ROWS))
        x = contents.rows(rng, (*rows, shape.k), dtype)
        try:
            bodies = [write(rng, x, shape)]
        except DoesNotRunError:
            continue
        break
    layers = [(0, *layer(bodies[0], rng, None))]
    for _ in range(rng.choices((0, 1, 2), (4, 4, 1))[0]):
        layers.append((0, *layer(bodies[0], rng, rng.random() < 0.7)))
    if rng.random() < 0.15:
        other = _another(rng, x, shape.k)
        if other is not None:
            bodies.append(other)
            layers.append((1, *layer(other, rng, None)))
    return Program(bodies, layers, x, together=len(layers) > 1 and len(bodies) == 1 and rng.random() < 0.3)


def _another(rng: Random, x: Tensor, k: int) -> Body | None:
    for _ in range(4):
        shape = random_shape(rng)
        if k % shape.g == 0 or shape.g < k:
            shape.k = k
            shape.g = shape.g if k % shape.g == 0 else k
        try:
            return write(rng, x, shape)
        except DoesNotRunError:
            continue
    return None


def judge(trial: Trial, rng: Random, remade: Remade) -> str:
    """What is wrong, or "". remade: other content for a constant of this name, and in words."""
    if trial.problem():
        return f"inside: {trial.problem().splitlines()[0]}"
    x = trial.inputs[0]
    samples = [x, contents.rows(rng, tuple(x.shape), x.dtype, rng.choice((1.0, 1e-3, 30.0)))]
    wrong = trial.check(samples, rng)
    if wrong or not trial.served() or rng.random() < 0.3:
        return wrong
    words = change(trial, rng, remade)
    wrong = trial.check(samples[:1], rng)
    return wrong and f"after a change ({words}): {wrong}"


def _cancels(program: Program) -> bool:
    """Whether a scaled zero point is subtracted from a scaled code."""
    return any(
        line.count("*") >= 2 and ("- " in line or "-v" in line or "+ " in line) for body in program.bodies for line in body.lines
    )


def _remade(program: Program) -> Remade:
    def remade(name: str, rng: Random) -> tuple[Tensor, str]:
        base, _, number = name.rpartition("_")
        body, _, _ = program.layers[int(number)]
        return program.bodies[body].parameters[base].remake(rng, rng.random() < 0.6)

    return remade


def _other_content(inputs: list[Tensor], names: list[str]) -> Remade:
    given = dict(zip(names, inputs, strict=True))

    def remade(name: str, rng: Random) -> tuple[Tensor, str]:
        tensor = given[name]
        if tensor.dtype in contents.FLOATS:
            return contents.scales(rng, tuple(tensor.shape), tensor.dtype)
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=contents.generator(rng))].reshape(tensor.shape), "shuffled"

    return remade


def change(trial: Trial, rng: Random, remade: Remade) -> str:
    """Gives one constant other content, in one of the ways in which users do it."""
    at = rng.randrange(1, len(trial.names))
    new, words = remade(trial.names[at], rng)
    way = rng.choice(("copy_", "replaced", "data", "one row"))
    old = trial.inputs[at]
    if way == "replaced":
        trial.inputs[at] = new
    elif way == "data":
        old.data = new
    elif way == "one row" and old.dim():
        old[:1].copy_(new[:1])
    else:
        old.copy_(new)
    return f"{trial.names[at]} {way}: {words}"
