"""Sizes that depend on data, anywhere in the graph: linears beside and behind them are served, with the right numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.spellings import scale
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.decorators import mark_unbacked

import qcompile
from qcompile.meaning import sqnr_db

linear = nn.functional.linear
LEAST_DB = 35.0

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Net(nn.Module):
    """Two int8 layers to use, one that rounds its input for each token, and a dense one."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.code = forward
        for name in "ab":
            self.register_buffer(f"q_{name}", torch.randint(-8, 8, (32, 32), generator=generator).to(torch.int8))
            self.register_buffer(f"s_{name}", scale(32, dtype=torch.float32))
        self.register_buffer("dense", torch.randn(32, 32, generator=generator).to(torch.bfloat16))

    def a(self, x: Tensor) -> Tensor:
        return linear(x, self.q_a.float() * self.s_a[:, None])  # type: ignore[operator,union-attr,index]

    def b(self, x: Tensor) -> Tensor:
        """Scaled behind the product."""
        return linear(x, self.q_b.float()) * self.s_b  # type: ignore[operator,union-attr]

    def rounded(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        return self.a((x / step).round().clamp(-127, 127) * step)

    def forward(self, *args: Tensor) -> Any:
        return self.code(self, *args)


def masked(*more: int) -> list[Tensor]:
    """x, and a mask that keeps four of its rows."""
    return [torch.randn(8, *more, 32, generator=torch.Generator().manual_seed(2)), torch.arange(8) % 4 > 1]


def counted(number: int | list[int]) -> list[Tensor]:
    return [masked()[0], torch.tensor(number)]


def unbacked(*more: int) -> list[Tensor]:
    x = masked(*more)[0]
    mark_unbacked(x, 0)
    return [x]


def _attention(m: Net, x: Tensor, mask: Tensor) -> Tensor:
    q, v = (heads(x[mask]).view(1, -1, 4, 8).transpose(1, 2) for heads in (m.a, m.b))
    return torch.softmax(q @ q.mT, -1) @ v


CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]]]] = {
    "rows by a mask": (lambda m, x, mask: m.a(x[mask]), masked),
    "rows by nonzero": (lambda m, x, mask: m.b(x[mask.nonzero().squeeze(-1)]), masked),
    "rows by a count": (lambda m, x, n: m.a(x[: n.item()]), lambda: counted(3)),
    "a narrowed middle": (lambda m, x, n: m.b(x.narrow(0, 0, n.item())), lambda: counted(5)),
    "marked unbacked": (lambda m, x: m.a(x), unbacked),
    "marked unbacked, 3-D": (lambda m, x: m.b(x).relu().view(x.shape[0], -1), lambda: unbacked(3)),
    "joined with all rows": (lambda m, x, mask: m.a(torch.cat([x, x[mask]])), masked),
    "beside a linear": (lambda m, x, mask: (m.a(x), x[mask]), masked),
    "two linears on one": (lambda m, x, mask: m.a(x[mask]) + m.b(x[mask]), masked),
    "one behind the other": (lambda m, x, mask: m.b(m.a(x)[mask].relu()), masked),
    "split by a list": (lambda m, x, n: [m.a(part) for part in torch.split(x, n.tolist())], lambda: counted([3, 5])),
    "rows repeated": (lambda m, x, n: m.a(torch.repeat_interleave(x[:3], n, dim=0)), lambda: counted([1, 2, 3])),
    "rows in pairs": (lambda m, x, mask: m.b(x[mask].view(-1, 2, 32)), masked),
    "flattened": (lambda m, x, mask: m.b(x[mask]).view(-1) + 1, masked),
    "other rows": (lambda m, x, mask: m.a(x[mask]).reshape(4, -1) * 2, masked),
    "written back": (lambda m, x, mask: torch.zeros_like(x).index_put((mask.nonzero()[:, 0],), m.a(x[mask])), masked),
    "rounded for each token": (lambda m, x, mask: m.rounded(x[mask]), masked),
    "attention": (_attention, masked),
    "a dense product": (lambda m, x, mask: (m.a(x), linear(x[mask].bfloat16(), m.dense)), masked),
}


@pytest.fixture(autouse=True)
def _captured() -> Iterator[None]:
    with config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        yield


def check(name: str, **options: Any) -> None:
    forward, inputs = CASES[name]
    model = Net(forward)
    with torch.no_grad():
        want = model(*inputs())
        got = torch.compile(model, backend="qcompile", fullgraph=True, options=options)(*inputs())
    for left, right in zip(*(list(item) if isinstance(item, list | tuple) else [item] for item in (want, got)), strict=True):
        assert left.shape == right.shape and sqnr_db(left, right) >= LEAST_DB
    rows = qcompile.report().sites
    assert rows and all(row.kernel for row in rows), rows


@pytest.mark.parametrize("name", CASES)
def test_it_is_served(name: str) -> None:
    check(name, rest="eager")


@pytest.mark.parametrize("name", ["rows by a mask", "rows by a count", "marked unbacked"])
def test_it_is_served_under_inductor(name: str) -> None:
    check(name)


def test_another_number_of_rows() -> None:
    """Served again by the same code, none at all included."""
    model = Net(CASES["rows by a mask"][0])
    run: Any = torch.compile(model, backend="qcompile", fullgraph=True, options={"rest": "eager"})
    x = torch.randn(8, 32)
    with torch.no_grad():
        for kept in (3, 8, 1, 0):
            mask = torch.arange(8) < kept
            got = run(x, mask)
            assert got.shape == (kept, 32)
            assert kept == 0 or sqnr_db(model(x, mask), got) >= LEAST_DB
    assert len({row.graph for row in qcompile.report().sites}) == 1
