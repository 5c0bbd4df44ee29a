"""torch.utils.swap_tensors works on a compiled model's weights and is noticed, as is a write to a part of one through .data."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from support.spellings import BF16, K, N, int4, linear, scale
from torch import Tensor, nn

from qcompile.meaning import sqnr_db
from qcompile.weights.cache import STORE

pytestmark = pytest.mark.usefixtures("fresh_compiler")
X = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(BF16)


class W4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(int4(), requires_grad=False)
        self.s = nn.Parameter(scale(N, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.q * self.s)


def other(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor.flip(0).clone(), requires_grad=False)


def compiled(model: nn.Module, rest: str, **options: Any) -> Callable[[Tensor], Tensor]:
    run: Callable[[Tensor], Tensor] = torch.compile(
        model, backend="qcompile", options={"rest": rest, "kernels": ["reference"], **options}
    )
    return run


def check(model: nn.Module, run: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.no_grad():
        want, got = model(X), run(X)
    assert sqnr_db(want, got) >= 40
    return want


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_a_swapped_weight_is_noticed_and_so_is_the_one_it_was_swapped_for(rest: str) -> None:
    model = W4()
    run = compiled(model, rest)
    before = check(model, run)
    incoming = other(model.q)
    torch.utils.swap_tensors(model.q, incoming)
    after = check(model, run)
    assert not torch.equal(before, after)
    torch.utils.swap_tensors(model.q, incoming)
    assert torch.equal(check(model, run), before)
    del incoming
    gc.collect()
    torch.utils.swap_tensors(model.s, other(model.s))
    assert not torch.equal(check(model, run), before)


def test_parameters_of_layers_that_share_code_can_be_swapped() -> None:
    model = Stack(3)
    run = compiled(model, "inductor")
    before = check(model, run)
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, other(parameter))
        check(model, run)
    assert not torch.equal(check(model, run), before)


def test_a_module_converted_by_swapping() -> None:
    """What torch.nn.Module.to does under this setting, as tensor subclasses ask for."""
    model = W4()
    run = compiled(model, "eager")
    check(model, run)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float32)
        model.to(BF16)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    check(model, run)


def test_no_weak_reference_is_left_on_a_weight() -> None:
    model = Stack(2)
    check(model, compiled(model, "eager"))
    assert not any(weakref.getweakrefs(parameter) for parameter in model.parameters())


def test_what_was_packed_from_a_swapped_out_weight_goes_with_it() -> None:
    model = W4()
    run = compiled(model, "eager")
    check(model, run)
    count = len(STORE.results.entries)
    for _ in range(3):
        torch.utils.swap_tensors(model.q, other(model.q))
        check(model, run)
        gc.collect()
        assert len(STORE.results.entries) <= count + 1


@pytest.mark.parametrize("rest", ["eager", "inductor"])
@pytest.mark.parametrize("part", range(4))
def test_a_quarter_written_through_data_is_noticed(part: int, rest: str) -> None:
    model = W4()
    run = compiled(model, rest)
    before = check(model, run)
    rows = slice(part * N // 4, (part + 1) * N // 4)
    model.q.data[rows] = -1 - model.q.data[rows]
    assert not torch.equal(check(model, run), before)
    model.s.data[rows] *= 2
    check(model, run)


def test_weights_exchanged_back_and_forth_through_data() -> None:
    model = W4()
    run = compiled(model, "eager")
    contents = [model.q.data, int4(), int4()]
    wanted = [check(model, run)]
    for turn in range(1, 9):
        model.q.data = contents[turn % 3]
        now = check(model, run)
        if turn < 3:
            wanted.append(now)
        assert torch.equal(now, wanted[turn % 3])
    del contents
    model.q.data = int4()
    check(model, run)
