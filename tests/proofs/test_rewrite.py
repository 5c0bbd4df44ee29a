"""A rewritten graph is run beside the one it replaces: equal numbers pass; whatever differs is a sentence."""

from collections.abc import Callable

import pytest
import torch
from support.large_graphs import traced
from torch import Tensor

from qcompile.graph.nodes import Constant, value
from qcompile.proofs.rewrite import Rewritten, sample, verify_rewrite

ROWS, N, K = 6, 40, 32
linear = torch.nn.functional.linear


def verdict(
    rewritten: Callable[[Tensor, Tensor, Tensor], Tensor],
    original: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, w, s: linear(x, w * s),
    shape: tuple[int, ...] = (ROWS, K),
    n: int = N,
    k: int = K,
) -> str:
    """What is said of `rewritten` in place of `original`: functions of x, w [n, k] and s [n, 1]."""
    generator = torch.Generator().manual_seed(2)
    w, s = torch.randint(-8, 8, (n, k), generator=generator).float(), torch.rand(n, 1, generator=generator) + 0.5
    inputs = [torch.empty(shape, device="meta"), w.to("meta"), s.to("meta")]
    graph = traced(lambda *given: (original(*given), rewritten(*given)), *inputs)
    x, *rest = graph.find_nodes(op="placeholder")
    before, after = graph.output_node().all_input_nodes
    constants = {node: Constant(name, tensor) for node, name, tensor in zip(rest, ("fc.w", "fc.s"), (w, s), strict=True)}
    return verify_rewrite(x, [Rewritten(before, after, tuple(rest), n, k, "fc")], constants)


@pytest.mark.parametrize("shape", [(ROWS, K), (2, 3, K), (1, K), (K,), (0, K), (2, 500, K)], ids=str)
def test_the_same_in_another_order_agrees(shape: tuple[int, ...]) -> None:
    assert verdict(lambda x, w, s: linear(x, w) * s.flatten(), shape=shape) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, s: linear(x, w),
        lambda x, w, s: linear(x, w * s) + 1.0,
        lambda x, w, s: linear(x, w * s.roll(1, 0)),
        lambda x, w, s: linear(x, (w + 1) * s),
        lambda x, w, s: linear(x, w * s) * torch.nan,
        lambda x, w, s: linear(x.roll(1, -1), w * s),
        lambda x, w, s: linear(x * 1.05, w * s),
    ],
    ids=("no scale", "offset", "another row's scale", "one code", "nan", "order of K", "five percent"),
)
@pytest.mark.parametrize("shape", [(ROWS, K), (2, 3, K), (1, K), (K,)], ids=str)
def test_other_numbers_are_wrong_on_a_probe(wrong: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    said = verdict(wrong, shape=shape)
    assert said.startswith("the rewrite of fc is wrong on a probe: ") and said.endswith("is asked for")


def test_other_shapes_and_dtypes_are_refused_unseen() -> None:
    assert verdict(lambda x, w, s: linear(x, w * s).t()) == f"the rewrite gives torch.float32 [{N}, {ROWS}] instead of " + (
        f"torch.float32 [{ROWS}, {N}]"
    )
    assert "gives torch.bfloat16" in verdict(lambda x, w, s: linear(x, w * s).bfloat16())


@pytest.mark.parametrize("part", ["first", "last"])
def test_of_a_large_weight_the_first_and_last_outputs_are_seen(part: str) -> None:
    """Larger than what is run as a whole: some strips, from the first to the last."""
    n, k = 9000, 1024
    end = (lambda y: y[..., :64]) if part == "first" else (lambda y: y[..., -64:])

    def wrong(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        y = linear(x, w * s)
        return torch.cat((end(y) * 2, y[..., 64:]) if part == "first" else (y[..., :-64], end(y) * 2), -1)

    assert verdict(lambda x, w, s: linear(x, w) * s.flatten(), n=n, k=k, shape=(2, k)) == ""
    assert "wrong on a probe" in verdict(wrong, n=n, k=k, shape=(2, k))


def test_samples_are_drawn_from_their_seed() -> None:
    x = next(iter(traced(lambda a: a + 1, torch.empty(4, 8, dtype=torch.bfloat16, device="meta")).find_nodes(op="placeholder")))
    first, again, other = (sample(value(x), seed, [3, 8]) for seed in (0, 0, 1))
    assert first.dtype is torch.bfloat16 and first.shape == (3, 8) and first.device.type == "cpu"
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.3 < float(first.float().std()) < 2.0
