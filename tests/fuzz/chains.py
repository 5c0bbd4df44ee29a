"""Writes random sites: codes out of their storage, zero points, scales, the weight, and the product with x."""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from fuzz import contents
from fuzz.programs import Body, DoesNotRunError, Remake
from fuzz.steps import INTEGERS, step, steps

ROWS, OUTPUTS, INPUTS = (1, 2, 3, 5, 8), (8, 16, 20, 32, 48, 64), (16, 32, 48, 64, 96, 128)
FLOAT_NAMES = ("torch.float32", "torch.bfloat16", "torch.float16")


@dataclass(slots=True)
class Shape:
    """Of one site: N outputs, K inputs, groups of g; bits of its codes; whether the weight is built as [K, N]."""

    n: int
    k: int
    g: int
    bits: int
    flipped: bool = False
    signed: bool = False

    @property
    def groups(self) -> int:
        return -(-self.k // self.g)


def random_shape(rng: Random) -> Shape:
    n, k = rng.choice(OUTPUTS), rng.choice(INPUTS)
    g = rng.choice([size for size in (8, 16, 32, 64) if k % size == 0] + [k])
    return Shape(n, k, g, rng.choice((4, 4, 4, 8, 8, 2, 3, 5, 6, 7)))


def write(rng: Random, x: Tensor, shape: Shape) -> Body:
    """A body whose last line is the product; DoesNotRunError if a needed line cannot be computed (the caller tries again)."""
    body = Body(x)
    name = rng.choice(STORAGES)(body, rng, shape)
    if rng.random() < 0.12:
        name = step(body, rng, name, INTEGERS)
    cast = rng.choice((str(x.dtype), str(x.dtype), *FLOAT_NAMES))
    w = body.say(f"{name}.to({cast})")
    if not shape.signed and rng.random() < 0.5:
        w = body.say(f"{w} - {1 << (shape.bits - 1)}")
    w = steps(body, rng, w, 0.08)
    later = ""
    if rng.random() < 0.15:  # scales behind the product
        scale = _scale(body, rng, (shape.n,) if rng.random() < 0.8 else (1,))
        later = steps(body, rng, scale, 0.4)
    else:
        w = _scaled(body, rng, w, shape)
    w = steps(body, rng, w, 0.2)
    if body.dtype(w) != str(x.dtype) or rng.random() < 0.1:
        w = body.say(f"{w}.to({x.dtype})")
    _product(body, rng, w, shape, later)
    return body


# Storages: each gives the name of integer codes [N, K] ([K, N] if shape.flipped), or of a float8 weight.


def _codes(low: int, high: int, dtype: torch.dtype, *size: int) -> Remake:
    return lambda rng, _: (contents.codes(rng, size, low, high, dtype), f"codes {low} .. {high - 1}")


def _bytes(dtype: torch.dtype, *size: int) -> Remake:
    def remake(rng: Random, _: bool) -> tuple[Tensor, str]:
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, size, dtype=torch.int64, generator=contents.generator(rng)).to(
            dtype
        ), "any bytes"

    return remake


def _signed_bytes(body: Body, rng: Random, shape: Shape) -> str:
    shape.signed, shape.flipped = True, rng.random() < 0.25
    size = (shape.k, shape.n) if shape.flipped else (shape.n, shape.k)
    high = 1 << (shape.bits - 1)
    return body.constant("q", _codes(-high, high, torch.int8, *size), rng)


def _unsigned_bytes(body: Body, rng: Random, shape: Shape) -> str:
    dtype = torch.uint8 if shape.bits == 8 else rng.choice((torch.uint8, torch.uint8, torch.int8, torch.int32, torch.int16))
    return body.constant("q", _codes(0, 1 << shape.bits, dtype, shape.n, shape.k), rng)


def _nibbles(body: Body, rng: Random, shape: Shape) -> str:
    shape.bits = 4
    p = body.constant("p", _bytes(torch.uint8, shape.n, shape.k // 2), rng)
    low, high = body.say(f"{p} & 15"), body.say(f"{p} >> 4")
    if rng.random() < 0.2:
        low, high = high, low
    if rng.random() < 0.2:
        return body.say(f"torch.cat([{low}, {high}], dim=1)")
    stacked = body.say(f"torch.stack([{low}, {high}], dim=-1)")
    return body.say(
        rng.choice(("{}.flatten(1)", f"{{}}.reshape({shape.n}, {shape.k})", f"{{}}.view({shape.n}, -1)")).format(stacked)
    )


def _words(body: Body, rng: Random, shape: Shape) -> str:
    shape.bits = rng.choice((4, 4, 2, 8))
    per = 32 // shape.bits
    if shape.k % per:
        raise DoesNotRunError("words")
    mask = (1 << shape.bits) - 1
    shifts = f"torch.arange(0, 32, {shape.bits}, dtype=torch.int32)"
    if rng.random() < 0.5:  # as GPTQ: words along K, weight [K, N]
        shape.flipped = True
        p = body.constant("p", _bytes(torch.int32, shape.k // per, shape.n), rng)
        wide = body.say(f"({p}.unsqueeze(1) >> {shifts}[None, :, None]) & {mask}")
        return body.say(f"{wide}.reshape({shape.k}, {shape.n})")
    p = body.constant("p", _bytes(torch.int32, shape.n, shape.k // per), rng)
    wide = body.say(f"({p}.unsqueeze(-1) >> {shifts}) & {mask}")
    return body.say(f"{wide}.reshape({shape.n}, {shape.k})")


def _book(body: Body, rng: Random, shape: Shape) -> str:
    shape.bits, shape.signed = 4, True
    q = body.constant("q", _codes(0, 16, torch.uint8, shape.n, shape.k), rng)
    dtype = rng.choice(contents.FLOATS)
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    integers = torch.arange(-8.0, 8.0)

    def remake(rng: Random, extreme: bool) -> tuple[Tensor, str]:
        kind = rng.choice(("e2m1", "e2m1", "integers", "random", *(("shifted", "holes") if extreme else ())))
        table = {"e2m1": e2m1, "integers": integers, "shifted": integers + 0.25, "holes": integers * 3}.get(kind)
        return (torch.randn(16, generator=contents.generator(rng)) if table is None else table).to(dtype), f"code book {kind}"

    table = body.constant("table", remake, rng)
    return body.say(f"{table}[{q}.long()]")


def _float8(body: Body, rng: Random, shape: Shape) -> str:
    shape.bits, shape.signed = 8, True
    dtype = rng.choice((torch.float8_e4m3fn, torch.float8_e5m2))

    def remake(rng: Random, _: bool) -> tuple[Tensor, str]:
        return contents.rows(rng, (shape.n, shape.k), torch.float32, 3.0).to(dtype), "normal numbers"

    return body.constant("w8", remake, rng)


STORAGES = (
    _signed_bytes,
    _signed_bytes,
    _signed_bytes,
    _unsigned_bytes,
    _unsigned_bytes,
    _nibbles,
    _nibbles,
    _words,
    _words,
    _book,
    _float8,
)


# Scales and zero points


def _scale(body: Body, rng: Random, size: tuple[int, ...], name: str = "s") -> str:
    dtype = rng.choice((torch.float32, torch.float32, body.x.dtype, body.x.dtype, torch.float16, torch.bfloat16))
    kind = rng.random()
    if kind < 0.06:  # exponents alone
        s = body.constant(name, _codes(110, 140, torch.uint8, *size), rng)
        return body.say(f"({s}.to(torch.int32) << 23).view(torch.float32)")
    if kind < 0.12:
        narrow = rng.choice((torch.float8_e4m3fn, torch.float8_e5m2))

        def remake8(rng: Random, extreme: bool) -> tuple[Tensor, str]:
            values, words = contents.scales(rng, size, torch.float32, None if extreme else "around one")
            return values.clamp(-400, 400).to(narrow), words

        return body.say(f"{body.constant(name, remake8, rng)}.{rng.choice(('float()', 'to(torch.bfloat16)', 'to(torch.float16)'))}")

    def remake(rng: Random, extreme: bool) -> tuple[Tensor, str]:
        return contents.scales(rng, size, dtype, None if extreme else rng.choice(("usual", "usual", "powers of two")))

    s = body.constant(name, remake, rng)
    if kind < 0.2:  # two levels
        inner = body.constant(f"{name}_inner", _codes(1, 64, rng.choice((torch.int8, torch.uint8, torch.int32)), *size), rng)
        return body.say(f"{inner}.to({rng.choice(FLOAT_NAMES)}) * {s}")
    if kind < 0.27:
        outer = body.constant(
            f"{name}_outer", lambda r, e: contents.scales(r, (1,), torch.float32, None if e else "around one"), rng
        )
        return body.say(f"{s} {rng.choice('*/')} {outer}")
    return s


def _points(body: Body, rng: Random, shape: Shape, size: tuple[int, ...]) -> str:
    high = 1 << shape.bits
    low, high = (-(high >> 1), high >> 1) if shape.signed else (0, high)
    if rng.random() < 0.2:
        return body.constant("z", lambda r, e: (contents.rows(r, size, torch.float32, 4.0), "normal numbers"), rng)
    dtype = rng.choice(
        (torch.uint8, torch.int32, torch.float32, torch.bfloat16) if low == 0 else (torch.int8, torch.int32, torch.float32)
    )
    z = body.constant("z", _codes(low, high, dtype, *size), rng)
    if rng.random() < 0.15:
        z = step(body, rng, z, INTEGERS) if not dtype.is_floating_point else z
    return z if rng.random() < 0.5 else body.say(f"{z}.to({rng.choice(FLOAT_NAMES)})")


def _scaled(body: Body, rng: Random, w: str, shape: Shape) -> str:
    """w with zero points and scales, the names of both spread over the weight's shape in one of many ways."""
    if rng.random() < 0.08 and shape.k > 16:  # the last group is short
        shape.g = rng.choice([size for size in (12, 24, 40, 56) if size < shape.k])
    way = rng.choice(("tensor", "channel", "channel", "group", "group", "group", "index"))
    size = {"tensor": (1,), "channel": (shape.n, 1)}.get(way, (shape.n, shape.groups))
    if way == "channel" and shape.flipped:
        size = (1, shape.n)
    if shape.flipped and way in ("group", "index"):
        size = (shape.groups, shape.n)
    index = ""
    if way == "index":
        index = body.constant("g_idx", _order(shape), rng)
    scale = steps(body, rng, _scale(body, rng, size), 0.45)
    zero = _points(body, rng, shape, size) if rng.random() < 0.4 else ""
    folded = way == "group" and shape.k % shape.g == 0 and rng.random() < 0.6
    if folded:
        inner = f"({shape.groups}, {shape.g}, {shape.n})" if shape.flipped else f"({shape.n}, {shape.groups}, {shape.g})"
        w = body.say(f"{w}.{rng.choice(('view', 'reshape'))}{inner}")
        at = "[:, None]" if shape.flipped else "[..., None]"
        s, z = f"{scale}{at}", zero and f"{zero}{at}"
    else:
        s, z = _spread(body, rng, scale, way, shape, index), zero and _spread(body, rng, zero, way, shape, index)
    w = _combined(body, rng, w, s, z)
    if folded:
        w = body.say(
            f"{w}.reshape({shape.k}, {shape.n})"
            if shape.flipped
            else f"{w}.{rng.choice(('flatten(1)', f'reshape({shape.n}, {shape.k})'))}"
        )
    return w


def _order(shape: Shape) -> Remake:
    def remake(rng: Random, _: bool) -> tuple[Tensor, str]:
        index = torch.arange(shape.k) // shape.g
        if rng.random() < 0.6:
            index = index[torch.randperm(shape.k, generator=contents.generator(rng))]
        return index.to(torch.int32), "group of each input"

    return remake


def _spread(body: Body, rng: Random, name: str, way: str, shape: Shape, index: str) -> str:
    if way in ("tensor", "channel"):
        return name
    dim = 0 if shape.flipped else 1
    if way == "index":
        return body.say(f"{name}[{index}.long()]" if dim == 0 else f"{name}[:, {index}.long()]")
    cut = "" if shape.k % shape.g == 0 else f"[:{shape.k}]" if dim == 0 else f"[:, :{shape.k}]"
    return body.say(f"{name}.repeat_interleave({shape.g}, {dim}){cut}")


def _combined(body: Body, rng: Random, w: str, s: str, z: str) -> str:
    forms = (
        ["{w} * {s}", "{s} * {w}", "{w} / (1.0 / {s})"]
        if not z
        else ["({w} - {z}) * {s}"] * 4 + ["{w} * {s} - {z} * {s}", "({w} + -{z}) * {s}", "{w} * {s} + {z} * -{s}"]
    )
    if rng.random() < 0.05:
        forms = ["{w} * {s} + {z}", "({w} - {z}) / {s}"] if z else ["{w} / {s}", "{w} * {s} * {s}", "{w} + {s}"]
    if body.dtype(w).startswith("torch.float8"):
        w = body.say(f"{w}.float()")
    return body.say(rng.choice(forms).format(w=w, s=s, z=z))


# The product


def _product(body: Body, rng: Random, w: str, shape: Shape, later: str) -> None:
    x = _rounded_x(body, rng)
    bias = ""
    if rng.random() < 0.25:
        bias = body.constant("b", lambda r, e: (contents.rows(r, (shape.n,), body.x.dtype), "normal numbers"), rng)
    flat = len(body.shape(x)) == 2
    left = w if shape.flipped else f"{w}.t()"  # [K, N]
    right = f"{w}.t()" if shape.flipped else w
    forms = [f"F.linear({x}, {right})", f"{x} @ {left}", f"torch.matmul({x}, {left})"]
    if flat:
        forms += [f"torch.mm({x}, {left})", f"({right} @ {x}.t()).t()", f"torch.bmm({x}[None], ({left})[None])[0]"]
        forms.append(f"torch.einsum('mk,nk->mn', {x}, {right})")
    if bias and rng.random() < 0.7:
        forms = [f"F.linear({x}, {right}, {bias})"]
        forms += [f"torch.addmm({bias}, {x}, {left})", f"torch.addmm({bias}, {x}, {left}, alpha=0.5, beta=2)"] if flat else []
        bias = ""
    y = body.say(rng.choice(forms))
    for text, chance in (
        ("{y}.float()", 0.08),
        ("{y}.relu()", 0.03),
        ("{y} * 2.0", 0.03),
        ("{y}.abs()", 0.02),
        ("{y}.clamp(-3.0, 3.0)", 0.02),
    ):
        if rng.random() < chance:
            y = body.say(text.format(y=y))
    if later:
        y = body.say(rng.choice(("{y} * {s}", "{s} * {y}", "{y} * {s}", "{y} / {s}", "{y} * {s} * 0.5")).format(y=y, s=later))
    if bias:
        y = body.say(f"{y} + {bias}")
    body.say(f"{y}.to({rng.choice((str(body.x.dtype), 'torch.float32'))})")


def _rounded_x(body: Body, rng: Random) -> str:
    """x, at times in other dtypes or shapes, or rounded to steps as checkpoints with int8 activations ask for it."""
    kind = rng.random()
    if kind < 0.75:
        return "x"
    if kind < 0.8:
        return body.say("x * 0.5")
    if kind < 0.85:
        return body.say("x[None].squeeze(0).contiguous()")
    if kind < 0.93:  # per token
        a = body.say("x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127")
        return body.say(f"torch.round(x / {a}).clamp(-128, 127) * {a}")
    a = body.constant("a", lambda r, _: (torch.tensor(0.01 + r.random() / 16), "one step"), rng)
    return body.say(f"(torch.round(x / {a}).clamp(-128, 127) * {a}).to(x.dtype)")
