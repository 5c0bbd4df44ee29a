"""Single steps that a chain of dequantization may contain anywhere; most change nothing for usual numbers and much for others."""

from random import Random

from fuzz.programs import Body, DoesNotRunError

# {v} is the value, {t} its dtype. Casts and views stand in real models; the rest depends on how large a value is.
CASTS = (
    "{v}.float()",
    "{v}.to(torch.bfloat16)",
    "{v}.to(torch.float16)",
    "{v}.to(torch.float16).float()",
    "{v}.to(torch.bfloat16).float()",
    "{v}.to(torch.float8_e4m3fn).to({t})",
    "{v}.to(torch.float8_e5m2).to({t})",
    "{v}.double()",
    "{v}.double().to({t})",
)
VIEWS = (
    "{v}.contiguous()",
    "{v}.clone()",
    "{v}.reshape({v}.shape)",
    "{v}.unsqueeze(0).squeeze(0)",
    "{v}.flatten().view({v}.shape)",
    "torch.cat([{v}])",
    "torch.stack([{v}, {v}])[1]",
    "{v}.detach()",
    "{v}.mT.contiguous().mT",
    "F.pad({v}, (0, 1))[..., :-1]",
    "{v}.expand({v}.shape)",
)
ARITHMETIC = (
    "{v} * 2.0",
    "{v} * 0.37",
    "{v} / 3.0",
    "-{v}",
    "{v} + 0.0",
    "{v} + 1.0",
    "{v} + 1.0 - 1.0",
    "{v} * 1e30 * 1e-30",
    "{v} * 1e-30 * 1e30",
    "{v} * 300.0 / 300.0",
    "1.0 / {v}",
    "1.0 / (1.0 / {v})",
    "{v} / {v} * {v}",
    "{v} - {v} * 0.5",
    "{v} * {v}",
    "{v} * {v} / {v}",
    "{v} ** 2",
    "{v}.pow(1.0)",
    "torch.addcmul({v}, {v}, {v})",
)
BY_SIZE = (
    "{v} + {v}.to(torch.int32)",
    "{v} - {v}.to(torch.int64)",
    "{v} + {v}.to(torch.int8)",
    "{v}.to(torch.int8).to({t})",
    "{v}.to(torch.int32).to({t})",
    "{v}.to(torch.uint8).to({t})",
    "{v} + torch.floor_divide({v} * {v}, 1.0)",
    "torch.floor_divide({v}, 0.001) * 0.001",
    "{v}.remainder(1.0)",
    "{v}.fmod(1.0)",
    "{v} % 0.5",
    "{v}.round()",
    "{v} + {v}.round()",
    "{v}.round(decimals=3)",
    "{v} + {v}.floor()",
    "{v} + {v}.ceil() - 1",
    "{v}.trunc() + {v}",
    "{v}.frac()",
    "{v}.clamp(min=1e-5)",
    "{v}.clamp(max=1.0)",
    "{v}.clamp(-1.0, 1.0)",
    "{v}.clamp(min=torch.finfo({t}).tiny)",
    "torch.where({v} > 0.015, {v}, 0.01)",
    "torch.where({v} == 0, torch.ones_like({v}), {v})",
    "torch.where({v}.abs() < 100, {v}, -{v})",
    "{v}.nan_to_num()",
    "{v}.nan_to_num(0.5, 2.0, -2.0)",
    "{v}.sqrt() * {v}.sqrt()",
    "{v}.square().sqrt()",
    "{v}.exp2().log2()",
    "{v}.exp() - 1",
    "{v}.abs()",
    "{v}.relu()",
    "{v}.sign() * {v}.abs()",
    "{v}.maximum(torch.full_like({v}, 0.002))",
    "{v}.minimum(torch.full_like({v}, 0.5))",
    "{v} * ({v} < 50)",
    "{v} / {v}.amax()",
    "{v} / {v}.amax() * {v}.amax()",
    "{v} * {v}.isfinite()",
    "{v}.masked_fill({v} < 0, 0.25)",
    "{v}.tanh()",
    "{v}.cumsum(-1)",
    "{v}.sort(-1).values",
    "{v}.logical_not() + {v}",
)
INTEGERS = (
    "{v} & 15",
    "{v} & 127",
    "({v} ^ 8) - 8",
    "({v} << 4) >> 4",
    "{v} >> 1",
    "{v} + 1",
    "{v} - 8",
    "{v} * 2",
    "{v} // 2",
    "{v} % 16",
    "{v}.abs()",
    "~{v}",
    "-{v}",
    "{v}.clamp(-7, 7)",
    "{v}.clamp(0, 15)",
    "torch.where({v} > 7, {v} - 16, {v})",
    "{v}.flip(-1)",
    "{v}.roll(1, 1)",
    "{v}.to(torch.int16)",
    "{v}.to(torch.int32)",
    "{v}.to(torch.int64)",
    "{v}.to(torch.int8)",
    "{v}.to(torch.uint8)",
    "{v} * {v}",
    "{v} | 1",
    "{v} ^ 1",
)


def step(body: Body, rng: Random, name: str, table: tuple[str, ...]) -> str:
    """`name` after one random step of the table that torch can compute and that keeps the shape."""
    shape = body.shape(name)
    for _ in range(8):
        text = rng.choice(table).format(v=name, t=body.dtype(name))
        try:
            result = body.say(text)
        except DoesNotRunError:
            continue
        if body.shape(result) == shape:
            return result
        body.lines.pop()
    return name


def steps(body: Body, rng: Random, name: str, chance: float) -> str:
    """`name` after a few random steps; with this chance for the first one."""
    while rng.random() < chance:
        name = step(body, rng, name, rng.choices((CASTS, VIEWS, ARITHMETIC, BY_SIZE), (3, 3, 2, 3))[0])
        chance *= 0.5
    return name
