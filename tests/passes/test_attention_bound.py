"""The memory that a proof of an attention takes does not grow with the attention, whatever is proven."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.large_graphs import MemoryWatch, traced
from support.native_weights import require_kernels
from torch import Tensor

from qcompile.graph.small_sizes import SizesError
from qcompile.recognize import attention_proof
from qcompile.recognize.attention import Attention, find_attention
from qcompile.recognize.attention_probes import layouts, shape_of
from qcompile.recognize.attention_proof import disproof, outer_inputs

MOST_BYTES = 200 << 20
# batch, heads, K/V heads, queries, keys, width: prompts that cannot be run here, a long cache, many heads, one head for all.
SHAPES = (
    (1, 32, 4, 8192, 8192, 64),
    (4, 64, 8, 131072, 131072, 128),
    (1, 32, 32, 1, 1 << 20, 128),
    (2, 71, 1, 4096, 4096, 64),
    (1, 16, 4, 16, 16, 16),
)


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, rows, width = x.shape
    return x[:, :, None].expand(batch, heads, times, rows, width).reshape(batch, heads * times, rows, width)


def native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, repeated(k, times), repeated(v, times), attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def spelled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    scores = torch.matmul(q, repeated(k, times).transpose(2, 3)) * 0.1 + mask
    return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), repeated(v, times))


def hidden(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    scores = (q @ repeated(k, times).transpose(2, 3) * 0.1).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1) @ repeated(v, times)


def found_in(function: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype, inductor: bool) -> list[Attention]:
    batch, heads, kv_heads, queries, keys, width = shape
    q = torch.empty(batch, queries, heads, width, dtype=dtype, device="meta").transpose(1, 2)
    k, v = (torch.empty(batch, kv_heads, keys, width, dtype=dtype, device="meta") for _ in range(2))
    mask = torch.empty(batch, 1, queries, keys, dtype=torch.bool if function is hidden else dtype, device="meta")
    graph = traced(function, q, k, v, mask, inductor=inductor)
    proposals = [item for node in graph.nodes if isinstance(item := find_attention(node), list)]
    assert len(proposals) == 1
    return proposals[0]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    require_kernels()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inductor", [False, True])
@pytest.mark.parametrize("function", [native, causal, spelled, hidden])
def test_a_proof_is_small(function: Callable[..., Any], inductor: bool, shape: tuple[int, ...]) -> None:
    verdicts: list[str] = []
    for found in found_in(function, shape, torch.bfloat16, inductor):
        sizes = outer_inputs(found)
        assert not isinstance(sizes, str)
        with MemoryWatch() as watch:
            wrong, sqnr = disproof(found, sizes, kernel=True)
        assert watch.total <= MOST_BYTES, f"{watch.total >> 20} MiB"
        verdicts.append(wrong)
        if not wrong:
            assert sqnr is not None and sqnr >= 40.0
            return
    raise AssertionError(verdicts)


def two_scales(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """No attention: every second query has another temperature."""
    heat = (torch.arange(q.shape[2]) % 2 + 1)[:, None]
    return torch.softmax(q @ k.transpose(2, 3) * heat + mask, -1) @ v


def first_half(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """No attention: the weights of the second half of the keys are dropped after the softmax."""
    weights = torch.softmax(q @ k.transpose(2, 3) + mask, -1)
    half = k.shape[2] // 2
    return torch.cat([weights[..., :half], torch.zeros_like(weights[..., half:])], -1) @ v


@pytest.mark.parametrize("function", [two_scales, first_half])
@pytest.mark.parametrize("length", [20, 4096])
def test_what_is_no_attention_is_refused_at_every_size(function: Callable[..., Any], length: int) -> None:
    batch, heads = 1, 8
    q, k, v = (torch.empty(batch, heads, length, 16, device="meta") for _ in range(3))
    graph = traced(function, q, k, v, torch.empty(1, 1, length, length, device="meta"))
    for node in graph.nodes:
        found = find_attention(node)
        for proposal in found if isinstance(found, list) else ():
            sizes = outer_inputs(proposal)
            assert isinstance(sizes, str) or disproof(proposal, sizes, kernel=False)[0]


def test_code_that_cannot_be_shrunk_is_run_only_if_it_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise SizesError("for a test")

    monkeypatch.setattr(attention_proof, "run_small", refuse)
    small, large = ((1, 4, 2, length, length, 16) for length in (20, 4096))
    assert disproof(found_in(spelled, small, torch.float32, False)[0], {}, kernel=True)[0] == ""
    found = found_in(spelled, large, torch.float32, False)[0]
    with MemoryWatch() as watch:
        wrong, _ = disproof(found, {}, kernel=True)
    assert "too large to be tried as it is" in wrong and "for a test" in wrong and watch.total < MOST_BYTES


def test_a_naive_softmax_is_another_one() -> None:
    def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = torch.exp(q @ k.transpose(2, 3))
        return (weights / weights.sum(-1, keepdim=True)) @ v

    found = found_in(naive, (1, 4, 4, 20, 20, 16), torch.float32, False)
    assert all("scores of hundreds" in disproof(item, {}, kernel=False)[0] for item in found)


def test_inputs_that_do_not_fit_are_a_reason() -> None:
    found = found_in(native, SHAPES[-1], torch.float32, False)[0]
    assert [shape_of(node)[0] for node in found.inputs][1] == (1, 4, 16, 16)
    for node in (found.v, found.mask):
        assert node is not None
        node.meta["val"] = node.meta["val"].new_empty((3, 4, 7, 16))
        with pytest.raises(SizesError):
            layouts(found)
