"""precompute: constants in which Inductor would leave numbers out are evaluated once; everything else stays as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graphs import through, with_state
from support.spellings import N, Written, int4, linear
from torch import Tensor, nn
from torch.nn.functional import pad

import qcompile
from qcompile.options import Options

G = 32
K = 80  # not a multiple of G
DENSE = Options(disable=("native", "zentorch", "torch"))


def scales(k: int = K, group: int = G) -> Tensor:
    return torch.rand(N, -(-k // group), generator=torch.Generator().manual_seed(1)) * 0.1 + 0.01


def fp8(k: int = K) -> Tensor:
    """Values that no kernel reads."""
    wide = torch.randn(N, k, generator=torch.Generator().manual_seed(2))
    wide[:, :2] = torch.tensor([240.0, 2.0**-10])  # the ends of its range, which E4M3 holds with no scale
    return wide.to(torch.float8_e4m3fnuz)


def times(m: Any, cut: Tensor) -> Tensor:
    return m.w.float() * cut  # type: ignore[no-any-return]


# Ways to cut a weight's scales off in the middle of a group; all but the last two are computed wrongly by Inductor 2.13.
CUTS: dict[str, Callable[[Any], Tensor]] = {
    "slice": lambda m: m.s.repeat_interleave(G, 1)[:, :K],
    "narrow": lambda m: m.s.repeat_interleave(G, 1).narrow(1, 0, K),
    "expand": lambda m: m.s[:, :, None].expand(N, 3, G).reshape(N, -1)[:, :K],
    "repeat": lambda m: m.s.unsqueeze(-1).repeat(1, 1, G).view(N, -1)[:, :K],
    "product": lambda m: (m.s[:, :, None] * torch.ones(G)).view(N, -1)[:, :K],
    "split": lambda m: m.s.repeat_interleave(G, 1).split([K, 16], 1)[0],
    "chunks": lambda m: torch.tensor_split(m.s.repeat_interleave(G, 1), [K], 1)[0],
    "negative pad": lambda m: pad(m.s.repeat_interleave(G, 1), (0, -16)),
    "index": lambda m: m.s.repeat_interleave(G, 1)[:, torch.arange(K)],
    "transposed": lambda m: m.s.repeat_interleave(G, 1).t()[:K].t(),
    "kron": lambda m: torch.kron(m.s, torch.ones(1, G))[:, :K],
    "scaled": lambda m: (m.s.repeat_interleave(G, 1) * 2)[:, :K],
    "as strided": lambda m: torch.as_strided(m.s.repeat_interleave(G, 1), (N, K), (96, 1)),
    "rows": lambda m: m.s.t().contiguous().repeat_interleave(G, 0)[:K].t(),
}


class Cut(nn.Module):
    """y = x @ (w * cut).T for a weight of float8 values, which is declined."""

    def __init__(self, cut: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.cut = cut
        self.register_buffer("w", fp8())
        self.register_buffer("s", scales())

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, times(self, self.cut(self)))


X = torch.zeros(3, K)


@pytest.mark.parametrize("name", CUTS)
def test_is_evaluated(name: str) -> None:
    model = Cut(CUTS[name])
    state = with_state(model, X, through("precompute"), Options(fallback="packed"))
    assert len(state.declined) == 1 and "float8_e4m3fnuz" in state.declined[0].declined
    (folded,) = state.folded.values()
    wanted = times(model, CUTS[name](model))
    assert torch.equal(folded.tensor if folded.tensor.shape == wanted.shape else folded.tensor.t(), wanted)
    assert folded.site is None and folded.kernel == "dense" and "w" in folded.module


LEFT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "groups that divide": lambda m, x: linear(x, m.w.float() * m.s[:, :2].repeat_interleave(K // 2, 1)),
    "a slice of codes": lambda m, x: linear(x[:, :64], m.w[:, :64].float() * m.s[:, :1]),
    "merged and not cut": lambda m, x: linear(pad(x, (0, 16)), m.s.repeat_interleave(G, 1) * pad(m.w.float(), (0, 16))),
    "not constant": lambda m, x: linear(x, m.w.float() * (m.s * x[0, 0]).repeat_interleave(G, 1)[:, :K]),
}


@pytest.mark.parametrize("name", LEFT)
def test_is_left(name: str) -> None:
    model = Written(LEFT[name], {"w": fp8(), "s": scales()})
    assert with_state(model, X, through("precompute"), Options()).folded == {}


def test_is_left_where_inductor_is_not_asked() -> None:
    assert with_state(Cut(CUTS["slice"]), X, through("precompute"), Options(rest="eager")).folded == {}


def test_a_served_weight_is_packed_and_not_evaluated() -> None:
    model = Written(lambda m, x: linear(x, m.w.float() * CUTS["slice"](m)), {"w": int4(N, K), "s": scales()})
    state = with_state(model, X, through("precompute"), Options(kernels=("reference",)))
    (site,) = state.sites
    assert (site.site.bits, site.site.group) == (4, 16)
    assert all(folded.site is site for folded in state.folded.values())


def test_a_weight_that_no_kernel_takes_is_evaluated_though_it_should_stay_packed() -> None:
    model = Written(lambda m, x: linear(x, m.w.float() * CUTS["slice"](m)), {"w": int4(N, K), "s": scales()})
    state = with_state(model, X, through("precompute"), Options(disable=DENSE.disable, fallback="packed"))
    (folded,) = state.folded.values()
    assert folded.site is None


class Sum(nn.Module):
    """The sum of layers, each on as many of x's columns as it has."""

    def __init__(self, layers: list[tuple[nn.Module, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer for layer, _ in layers)
        self.widths = [width for _, width in layers]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x[:, :width]) for layer, width in zip(self.layers, self.widths, strict=True))


def short(w: Tensor, group: int) -> tuple[nn.Module, int]:
    k = w.shape[1]
    forward = lambda m, x: linear(x, m.w.float() * m.s.repeat_interleave(group, 1)[:, :k])  # noqa: E731
    return Written(forward, {"w": w, "s": scales(k, group)}), k


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("fallback", ["dense", "packed"])
def test_inductor_gives_what_eager_gives(fallback: str) -> None:
    """Served and declined, with the default options, before and after a change."""
    sizes = [(80, 32), (72, 64), (96, 64), (82, 32), (81, 16)]
    layers = [short(int4(N, k), group) for k, group in sizes]
    layers += [short(fp8(k), group) for k, group in sizes[:3]]
    layers += [(Cut(CUTS[name]), K) for name in ("split", "negative pad", "product")]
    model, x = Sum(layers), torch.randn(3, 96)
    compiled = torch.compile(model, backend="qcompile", options={"fallback": fallback, "measure": False})
    with torch.no_grad():
        for change in (1.0, 3.0):
            for layer in model.layers:
                layer.s.mul_(change)  # type: ignore[operator,union-attr]
            for got, want in zip(compiled(x), model(x), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    rows = qcompile.report().sites
    assert [row.kernel is not None for row in rows if "float8" not in row.declined] == [True] * len(sizes)
    assert [row.group for row in rows if row.kernel] == [16, 8, 32, 32, 16]
