"""Kernels that lose NaN, narrow scales or fail at the edge are refused; those that run here are not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qcompile.activations import ActivationQuant
from qcompile.kernel import Extras, Kernel, Site
from qcompile.meaning import Operands
from qcompile.proofs import extremes
from qcompile.targets.registry import find

SITE = Site(n=300, k=64, bits=8, group=64, activation=ActivationQuant("token", 127.0, -127), dtype=torch.float32)
GOOD = find("reference.quantized_linear")


def changed(kernel: Kernel, **parts: object) -> Kernel:
    return replace(kernel, name="changed", **parts)  # type: ignore[arg-type]


def quiet(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    return GOOD.call(x.nan_to_num(), packed, extras, site).nan_to_num()


def shifted(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    return GOOD.call(x, packed, extras, site) + 1e-3


def spread(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    y = GOOD.call(x, packed, extras, site)
    return y if bool(y.isfinite().all()) else torch.full_like(y, torch.nan)


def failing(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    raise RuntimeError("no such luck")


def narrow(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    return GOOD.pack(weight._replace(scales=weight.scales.half().float()), site)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        (GOOD, ""),
        (changed(GOOD, call=quiet), "gives finite numbers for a token with NaN"),
        (changed(GOOD, call=shifted), "is off by 0.001 for a token of zeros only"),
        (changed(GOOD, call=spread), "gives NaN or infinity for a token of zeros only"),
        (changed(GOOD, call=failing), "failed on a made-up weight: RuntimeError: no such luck"),
        (changed(GOOD, pack=narrow), "does not keep a scale of 1e-30"),
        (changed(GOOD, call=failing, refuses=lambda site: ("too few outputs",)), ""),
    ],
)
def test_what_a_kernel_is_refused_for(kernel: Kernel, text: str) -> None:
    assert extremes.objection(kernel, SITE) == text


def test_a_narrowed_scale_is_seen_in_float16() -> None:
    site = replace(SITE, dtype=torch.float16, activation=ActivationQuant())
    assert extremes.objection(GOOD, site) == ""
    assert extremes.objection(changed(GOOD, pack=narrow), site) == "does not keep a scale of 2e-08"


class PerToken(nn.Module):
    """W8A8 by hand: x rounded per token or with a given scale."""

    def __init__(self, static: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("q", torch.randint(-127, 128, (64, 64), dtype=torch.int8, generator=generator))
        self.register_buffer("s", torch.rand(64, 1, generator=generator) / 64 + 0.01)
        self.register_buffer("a", torch.tensor(0.05))
        self.static = static

    def forward(self, x: Tensor) -> Tensor:
        a = self.a if self.static else x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        return linear(torch.round((x / a).clamp(-128, 127)) * a, self.q.to(x.dtype) * self.s.to(x.dtype))  # type: ignore[operator]


@pytest.mark.parametrize("kernels", [["zentorch"], ["torch"], ["native"]])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_a_token_that_is_no_number_stays_none(kernels: list[str], static: bool, rest: str, fresh_compiler: None) -> None:
    model = PerToken(static)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    with torch.no_grad():
        got = torch.compile(model, backend="qcompile", options={"rest": rest, "kernels": kernels})(x)
        assert torch.equal(got.isfinite().all(-1), model(x).isfinite().all(-1))
