"""A weight that changes after compilation gives the new result at the next call, however it was changed; or the change is loud."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.packed_linears import packed_linear
from support.spellings import BF16, F16, SPELLINGS, G, K, N, Written, int4, int8, linear, scale
from torch import Tensor

import qcompile
from qcompile.meaning import sqnr_db

EVERY_KERNEL = ["zentorch", "native", "rdna3", "xpu", "torch", "reference"]
# How the weight is read, what runs it.
READ = {
    "reader": "linear of the scaled",
    "reader, zero points": "GPTQ by hand",
    "reader, scale after": "linear then scale, 2-D",
    "lattice, scale after": "nibbles, scale after",
    "lattice, 4 bits": "nibbles by stack and unbind",
    "lattice, zero points": "zero points uint8 packed",
}
RUN: dict[str, dict[str, Any]] = {
    "reference": {"kernels": ["reference"]},
    "default": {},
    "dense": {"disable": EVERY_KERNEL},
    "packed": {"disable": EVERY_KERNEL, "fallback": "packed"},
}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Pair:
    """A model, compiled and eager."""

    def __init__(self, name: str, **options: Any) -> None:
        spelling = next(spelling for spelling in SPELLINGS if spelling.name == name)
        self.model, self.x = spelling.model(), spelling.x()
        self.other = spelling.model()  # a second one with other values
        for buffer, tensor in self.other.named_buffers():
            if buffer != "g_idx":
                tensor.copy_(tensor.flip(0))
        self.compiled = torch.compile(self.model, backend="qcompile", options={"rest": "eager", **options})

    def check(self) -> Tensor:
        with torch.no_grad():
            got, want = self.compiled(self.x), self.model(self.x)
        assert sqnr_db(want, got) >= 40
        return want


def codes_of(model: Written) -> Tensor:
    return next(tensor for tensor in model.buffers() if tensor.dtype in (torch.int8, torch.uint8, torch.int32))


def in_place_codes(pair: Pair) -> None:
    codes = codes_of(pair.model)
    codes.copy_(codes.flip(0))


def in_place_scales(pair: Pair) -> None:
    pair.model.s.mul_(3)  # type: ignore[operator]


def one_scale(pair: Pair) -> None:
    pair.model.s.view(-1)[0] = 9.0  # type: ignore[operator]


def another_buffer(pair: Pair) -> None:
    pair.model.s = pair.model.s * 3  # type: ignore[operator]


def state_dict(pair: Pair) -> None:
    pair.model.load_state_dict(pair.other.state_dict())


def assigned_state_dict(pair: Pair) -> None:
    pair.other.s.mul_(2)  # type: ignore[operator]
    pair.model.load_state_dict(pair.other.state_dict(), assign=True)


def data_replaced(pair: Pair) -> None:
    pair.model.s.data = pair.model.s.data * 3


def data_replaced_twice(pair: Pair) -> None:
    """The allocator likes to give the second tensor the first one's address."""
    shape, dtype = pair.model.s.shape, pair.model.s.dtype
    pair.model.s.data = torch.zeros(1 << 20).to(dtype)
    pair.model.s.data = torch.full(shape, 0.25, dtype=dtype)


def written_through_data(pair: Pair) -> None:
    pair.model.s.data.copy_(pair.model.s * 3)  # type: ignore[operator]


def codes_written_through_data(pair: Pair) -> None:
    codes = codes_of(pair.model)
    codes.data.copy_(codes.flip(0).clone())


def written_by_numpy(pair: Pair) -> None:
    pair.model.s.view(torch.int16 if pair.model.s.element_size() == 2 else torch.int32).numpy()[...] += 128  # type: ignore[operator]


CHANGES = (
    in_place_codes,
    in_place_scales,
    one_scale,
    another_buffer,
    state_dict,
    assigned_state_dict,
    data_replaced,
    data_replaced_twice,
    written_through_data,
    codes_written_through_data,
    written_by_numpy,
)


@pytest.mark.parametrize("run", RUN)
@pytest.mark.parametrize("read", READ)
def test_every_change_is_seen(read: str, run: str) -> None:
    pair = Pair(READ[read], **RUN[run])
    compilations = torch._dynamo.utils.counters["stats"]
    before = pair.check()
    first = 0
    for number, change in enumerate(CHANGES):
        with torch.no_grad():
            change(pair)
        after = pair.check()
        assert float((before - after).abs().max()) > 0, change.__name__
        before = after
        if number == 0:
            first = compilations["unique_graphs"]
    assert compilations["unique_graphs"] == first, "packing again needs no new compilation"


def test_a_change_is_seen_under_inductor() -> None:
    pair = Pair("linear then scale, 2-D", rest="inductor")
    before = pair.check()
    with torch.no_grad():
        in_place_scales(pair)
        assert not torch.equal(before, pair.check())


def test_a_change_between_two_compilations_is_seen() -> None:
    """The second graph, for another shape, must not find the packed weight of the first."""
    pair = Pair("linear of the scaled", kernels=["reference"])
    pair.check()
    written_through_data(pair)
    pair.x = pair.x[:3]
    pair.check()
    data_replaced_twice(pair)
    pair.x = pair.x[:2]
    pair.check()


def test_a_bias_that_changes_is_seen() -> None:
    pair = Pair("bias before the scale", kernels=["reference"])
    before = pair.check()
    with torch.no_grad():
        pair.model.b.add_(1)  # type: ignore[operator]
    assert not torch.equal(before, pair.check())


def test_a_group_index_that_changes_is_seen() -> None:
    """Compiled in order, so that the packing does not even read it."""
    pair = Pair("GPTQ by hand", kernels=["reference"])
    pair.check()
    assert not qcompile.report().sites[0].act_order
    with torch.no_grad(), pytest.warns(UserWarning, match="does not cover"):
        pair.model.g_idx.copy_(pair.model.g_idx.flip(0))  # type: ignore[operator]
        pair.check()


def outside_the_packing() -> dict[str, tuple[str, Callable[[Written], object]]]:
    return {
        "four bits become eight": ("four bits in int8", lambda m: m.q.copy_(int8())),  # type: ignore[operator]
        "zero points out of range": ("zero points int8", lambda m: m.z.fill_(100)),  # type: ignore[operator]
        "codes off the lattice": ("codes by a literal table", lambda m: m.s.fill_(float("nan"))),  # type: ignore[operator]
        "infinite scales": ("linear of the scaled", lambda m: m.s.fill_(float("inf"))),  # type: ignore[operator]
        "another table": ("nibbles by a table of pairs", lambda m: m.table.add_(0.3)),  # type: ignore[operator]
    }


@pytest.mark.parametrize("case", outside_the_packing())
def test_content_that_the_packing_cannot_hold_runs_as_captured_with_one_warning(case: str) -> None:
    name, change = outside_the_packing()[case]
    pair = Pair(name, kernels=["reference"])
    pair.check()
    with torch.no_grad():
        change(pair.model)
        want = pair.model(pair.x)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                torch.testing.assert_close(pair.compiled(pair.x), want, equal_nan=True)
        assert [str(item.message)[:45] for item in seen if "qcompile" in str(item.message)] == [
            "qcompile: a quantized weight was changed to a"
        ]
        pair.model.load_state_dict(Pair(name).model.state_dict())
        pair.check()


def test_a_dense_weight_takes_any_content() -> None:
    pair = Pair("four bits in int8", disable=EVERY_KERNEL)
    pair.check()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        codes_of(pair.model).copy_(int8())
        pair.check()


def test_two_weights_of_one_name_are_told_apart() -> None:
    """A global and an attribute may both be called w."""
    w, s = int4(), scale(N, 1)
    model = Written(lambda m, x: linear(x, m.w * m.s) + linear(x, w * s), {"w": int4(), "s": scale(N, 1)})
    x = torch.randn(3, K).to(BF16)
    compiled = torch.compile(model, backend="qcompile", options={"rest": "eager", "kernels": ["reference"]})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for change in (lambda: None, lambda: w.neg_().clamp_(-8, 7), lambda: s.mul_(4), lambda: model.s.mul_(4)):  # type: ignore[operator]
            change()
            assert sqnr_db(model(x), compiled(x)) >= 40


def test_a_dead_model_leaves_no_proof_behind() -> None:
    """Another model gets the first one's ids and addresses; its content needs other bits."""
    x = torch.randn(3, K).to(BF16)
    bits = []
    for make in (int4, int8, int4, int8) * 3:
        torch._dynamo.reset_code_caches()
        model = Written(lambda m, x: linear(x, m.q.to(BF16) * m.s), {"q": make(), "s": torch.full((N, 1), 0.01, dtype=BF16)})
        compiled = torch.compile(model, backend="qcompile", options={"rest": "eager", "kernels": ["reference"]})
        with torch.no_grad():
            assert sqnr_db(model(x), compiled(x)) >= 40
        bits.append(qcompile.report().sites[-1].bits)
        del model, compiled
    assert set(bits) == {4, 8}


def test_groups_of_one_structure_are_checked_one_by_one() -> None:
    """Two layers run the same code; only one of them has its columns in order."""

    def layer(g_idx: Tensor) -> Written:
        tensors = {"q": int8(), "s": scale(N, K // G), "g": g_idx}
        return Written(lambda m, x: linear(x, m.q * m.s[:, m.g]), tensors)

    torch.manual_seed(1)
    order = torch.arange(K) // G
    layers = [layer(order), layer(order[torch.randperm(K)])]
    x = torch.randn(3, K).to(BF16)
    compiled = torch.compile(
        lambda x: [each(x) for each in layers], backend="qcompile", options={"rest": "eager", "kernels": ["reference"]}
    )
    with torch.no_grad():
        for each, got in zip(layers, compiled(x), strict=True):
            assert sqnr_db(each(x), got) >= 40
    assert [row.act_order for row in qcompile.report().sites] == [False, True]


@pytest.mark.parametrize("straight_first", [True, False])
def test_prepared_layers_with_and_without_columns_in_order_unpack_each_in_its_own_way(straight_first: bool) -> None:
    """In one graph. The stored g_idx of one says nothing, so that its reading has no permutation."""
    torch.manual_seed(1)
    order = (torch.arange(K) // G).int()
    shuffled = order[torch.randperm(K)].clone()
    layers = [packed_linear(N, K, G, dtype=F16, g_idx=g_idx) for g_idx in (order, shuffled)]
    first, second = layers if straight_first else reversed(layers)
    options = {"rest": "eager", "kernels": ["reference"]}
    compiled = torch.compile(lambda x: (first(x), second(x.relu()).tanh()), backend="qcompile", options=options)
    x = torch.randn(3, K).to(F16)
    with torch.no_grad():
        for want, got in zip((first(x), second(x.relu()).tanh()), compiled(x), strict=True):
            assert sqnr_db(want, got) >= 40
    assert [row.kernel for row in qcompile.report().sites] == ["reference.quantized_linear"] * 2
    assert [row.act_order for row in qcompile.report().sites] == [not straight_first, straight_first]


def test_code_that_decides_by_value_is_believed_for_each_weight_alone() -> None:
    """Clamping shows only where a weight is large enough."""
    layers = [
        Written(lambda m, x: linear(x, (m.q * m.s).clamp(-20, 20)), {"q": int8(), "s": torch.full((N, 1), size, dtype=BF16)})
        for size in (0.01, 1.0)
    ]
    x = torch.randn(3, K).to(BF16)
    compiled = torch.compile(
        lambda x: [each(x) for each in layers], backend="qcompile", options={"rest": "eager", "kernels": ["reference"]}
    )
    with torch.no_grad():
        for each, got in zip(layers, compiled(x), strict=True):
            assert sqnr_db(each(x), got) >= 40
