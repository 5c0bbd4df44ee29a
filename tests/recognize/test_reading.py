"""Whether a reading also holds for other contents is one comparison by value: no reader, guess or lattice is asked again."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from qcompile.graph.nodes import Constant
from qcompile.graph.walk import constant_nodes
from qcompile.recognize import recovered
from qcompile.recognize import weight as reader
from qcompile.recognize.products import PRODUCTS, Product, find_product
from qcompile.recognize.reading import Reading

N, K, G = 32, 64, 16
Tensors = dict[str, Tensor]


def contents(low: int = -128, high: int = 128, zeros: tuple[int, int] = (-3, 4), size: float = 0.01) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    codes = torch.randint(low, high, (N, K), generator=generator).to(torch.int8)
    codes[:, :2] = torch.tensor([low, high - 1], dtype=torch.int8)
    points = torch.randint(*zeros, (N, K // G), generator=generator).to(torch.int8)
    points.view(-1)[:2] = torch.tensor([zeros[0], zeros[1] - 1], dtype=torch.int8)
    return {"q": codes, "z": points, "s": (torch.rand(N, K // G, generator=generator) + 0.5) * size}


def with_zeros(q: Tensor, z: Tensor, s: Tensor) -> Tensor:
    return ((q.reshape(N, -1, G).float() - z[..., None]) * s[..., None]).reshape(N, K)


def by_table(q: Tensor, z: Tensor, s: Tensor) -> Tensor:
    """No reader knows a sum of two matrices: it is recovered from its values. Large weights are clamped."""
    return ((q.reshape(N, -1, G).float() + q.flip(0).reshape(N, -1, G).float()) * s[..., None]).reshape(N, K).clamp(-20, 20)


def first_reading(chain: Callable[..., Tensor], tensors: Tensors) -> tuple[Reading, dict[fx.Node, str]]:
    """The accepted reading, and which tensor each of its constants is."""
    code = lambda x, *given: torch.nn.functional.linear(x, chain(*given))  # noqa: E731
    gm = make_fx(code, tracing_mode="real")(torch.ones(2, K), *tensors.values())
    names = dict(zip(list(gm.graph.find_nodes(op="placeholder"))[1:], tensors, strict=True))
    given = constants(names, tensors)
    for node, constant in given.items():
        node.meta["val"] = constant.tensor
    known = constant_nodes(gm.graph, given)
    products = (find_product(node, known) for node in gm.graph.nodes if node.target in PRODUCTS)
    found = reader.Reader(given).read(next(item for item in products if isinstance(item, Product)))
    assert isinstance(found, Reading), found
    return found, names


def constants(names: dict[fx.Node, str], tensors: Tensors) -> dict[fx.Node, Constant]:
    return {node: Constant(name, tensors[name]) for node, name in names.items()}


@pytest.mark.parametrize(
    ("chain", "first", "then", "problem"),
    [
        (with_zeros, {}, {"zeros": (-5, 2)}, ""),
        (with_zeros, {}, {"size": 2.0}, ""),
        (with_zeros, {}, {"low": -4, "high": 4}, "reads differently"),  # now narrow enough for four bits
        (with_zeros, {"low": 0, "high": 16, "zeros": (0, 16)}, {}, "reads differently"),
        (with_zeros, {}, {"size": float("nan")}, "its scales hold NaN or infinity"),
        (by_table, {"low": -2, "high": 3}, {"low": -2, "high": 3, "size": 0.5}, ""),
        (by_table, {"low": -2, "high": 3}, {"low": -64, "high": 64}, "its codes need more than 4 bits"),
        (by_table, {"low": -2, "high": 3}, {"low": -2, "high": 3, "size": 40.0}, "its weight is not what it was read as"),
    ],
)
def test_other_contents_are_compared_with_this_reading_alone(
    chain: Callable[..., Tensor],
    first: dict[str, object],
    then: dict[str, object],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader.clear()
    reading, names = first_reading(chain, contents(**first))  # type: ignore[arg-type]

    def searched(*_: object) -> None:
        raise AssertionError("something was searched")

    monkeypatch.setattr(reader, "proposals", searched)
    monkeypatch.setattr(recovered.Values, "findings", searched)
    found = reading.of_others(constants(names, contents(**then)))  # type: ignore[arg-type]
    assert problem in found if isinstance(found, str) else not problem


def test_the_zero_points_of_the_other_contents_are_known() -> None:
    reading, names = first_reading(with_zeros, contents())
    other = reading.of_others(constants(names, contents(zeros=(-9, 2))))
    assert isinstance(other, Reading) and other.key == reading.key
    assert other.facts.zero_range != reading.facts.zero_range


def test_guesses_are_equal_after_they_were_made_again_for_another_weight() -> None:
    """Between two weights of one structure another was read in another way."""
    reader.clear()
    first, _ = first_reading(with_zeros, contents())
    between, _ = first_reading(with_zeros, contents(zeros=(0, 1)))
    again, _ = first_reading(with_zeros, contents(zeros=(-6, 7)))
    assert again.guess == first.guess and again.key == first.key
    assert between.key != first.key
