"""zentorch: its cache by address cannot be hit, its schema is read live, its prepacking is used only where it is right."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.rows import needed
from support.weights import random_weight, reference
from torch import Tensor

from qcompile.activations import NO_ACTIVATION_QUANT
from qcompile.api import pack_linear
from qcompile.hardware import platform
from qcompile.kernel import site_of
from qcompile.meaning import Operands, sqnr_db
from qcompile.targets import zentorch, zentorch_ops, zentorch_prepack
from qcompile.targets.binding import Foreign

WOQ_HEAD = "Tensor input, Tensor weight, Tensor weight_scales, Tensor? weight_zero_points"


@pytest.fixture(autouse=True)
def library() -> None:
    needed("zentorch.woq_linear")


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_the_hazard_is_real() -> None:
    """Another weight at the address of an earlier one is answered with the earlier one's numbers: why addresses are retired."""
    row = needed("zentorch.woq_linear")
    first, second = random_weight(64, 256, 64, seed=1), random_weight(64, 256, 64, seed=2)
    x = torch.randn(4, 256).bfloat16()
    site = site_of(first, torch.bfloat16, None, NO_ACTIVATION_QUANT)
    packed = row.packed(Operands(first.codes, first.scales), site)
    assert sqnr_db(reference(x, first), row.run(x, packed, site)) > 40
    for old, new in zip(packed, row.packed(Operands(second.codes, second.scales), site), strict=True):
        old.copy_(new)
    assert sqnr_db(reference(x, second), row.run(x, packed, site)) < 10


@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize(("kernel", "bits", "group"), [("zentorch.woq_linear", 4, 64), ("zentorch.dynamic_qlinear", 8, 0)])
@pytest.mark.parametrize("k", [256, 2304])
def test_twenty_weights_one_after_the_other(kernel: str, bits: int, group: int, k: int, rows: int) -> None:
    row = needed(kernel)
    x = torch.randn(rows, k).bfloat16()
    for seed in range(20):
        weight = random_weight(96, k, group, bits=bits, seed=seed)
        run = pack_linear(weight, kernel)
        expected = reference(x, weight, None, row.activation or NO_ACTIVATION_QUANT)
        assert sqnr_db(expected, run(x)) > 40, f"weight {seed}"
        del run, weight


def test_both_rows_ask_for_retired_addresses() -> None:
    assert all(row.retire_addresses for row in zentorch.KERNELS)


def test_prepacked_int8_weights_leave_no_copy_behind() -> None:
    """Ten layers of 4 MiB each, run and dropped: plain codes would leave 40 MiB of reordered copies."""
    kernel, x = "zentorch.dynamic_qlinear", torch.randn(1, 2048).bfloat16()
    weight = random_weight(2048, 2048, bits=8)
    assert zentorch_prepack.serves(weight.n, weight.k)
    for _ in range(3):
        pack_linear(weight, kernel)(x)
    before = resident()
    for _ in range(10):
        pack_linear(weight, kernel)(x)
    assert resident() - before < 20 << 20


def test_repacking_leaves_nothing_behind() -> None:
    """Ten repacked weights of 8 MiB: the library itself would keep all 80 MiB."""
    codes = torch.randint(-8, 8, (4096, 4096), dtype=torch.int8)
    for _ in range(3):
        zentorch_prepack.repack(codes)
    before = resident()
    for _ in range(10):
        zentorch_prepack.repack(codes)
    assert resident() - before < 20 << 20


def test_repacking_without_the_library_gives_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(-8, 16, (33, 72), dtype=torch.int8)
    packed = zentorch_prepack.repack(codes)
    monkeypatch.setattr(Foreign, "live", lambda _self: None)
    assert torch.equal(zentorch_prepack.repack(codes), packed)


def test_prepacked_weights_may_be_copied_and_moved() -> None:
    row = needed("zentorch.dynamic_qlinear")
    assert row.activation is not None
    weight = random_weight(100, 384, bits=8)
    site = site_of(weight, torch.float32, None, row.activation)
    packed = row.packed(Operands(weight.codes, weight.scales), site)
    assert packed[0].numel() == packed[0].untyped_storage().nbytes() == zentorch_prepack.stored_bytes(100, 384)
    x = torch.randn(5, 384)
    assert torch.equal(row.run(x, tuple(tensor.clone() for tensor in packed), site), row.run(x, packed, site))


@pytest.mark.parametrize(("n", "k", "served"), [(16, 2048, True), (15, 2048, False), (64, 2052, False), (64, 6, False)])
def test_prepacking_is_only_used_where_it_was_found_right(n: int, k: int, served: bool) -> None:
    assert zentorch_prepack.serves(n, k) == served


def test_a_library_with_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = zentorch_ops.PREPACK

    class Longer:
        def __call__(self, weight: Tensor) -> Tensor:
            packed = real(weight=weight)
            return torch.cat([packed.flatten(), packed.flatten()[:64]])[: packed.numel()].view(packed.shape)

    monkeypatch.setattr(zentorch_prepack, "PREPACK", Longer())
    with pytest.raises(RuntimeError, match="qcompile knows a layout of"):
        zentorch_prepack.prepack(torch.zeros(64, 64, dtype=torch.int8))


@pytest.fixture
def odd_library() -> Iterator[Any]:
    library: Any = torch.library.Library("qcompile_test_odd", "FRAGMENT")
    yield library
    library._destroy()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("(Tensor input, Tensor weight, Tensor weight_scales, Tensor? bias=None) -> Tensor", ["no argument weight_zero_points"]),
        (
            f"({WOQ_HEAD}, Tensor? bias, int isa) -> Tensor",
            ["demands isa"],
        ),
        ("(Tensor x, Tensor weight) -> Tensor", ["no argument input, weight_scales, weight_zero_points", "demands x"]),
        (
            f"({WOQ_HEAD}, Tensor? bias=None, *, int q=1) -> Tensor",
            [],
        ),
        ("(Tensor bias, Tensor weight_scales, Tensor? weight_zero_points, Tensor weight, Tensor input) -> Tensor", []),
    ],
)
def test_changed_signatures_are_reasons_and_reordered_ones_are_not(odd_library: Any, schema: str, words: list[str]) -> None:
    name = f"woq{abs(hash(schema))}"
    odd_library.define(name + schema)
    found = Foreign("qcompile_test_odd", name, zentorch_ops.WOQ.arguments, zentorch_ops.WOQ.schema, zentorch_ops.WOQ.fake).reasons()
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_an_absent_operator_is_a_reason() -> None:
    absent = Foreign("zentorch", "zentorch_nothing", (), "() -> Tensor", zentorch_ops.WOQ.fake)
    assert absent.reasons() == ("the operator zentorch::zentorch_nothing is not registered",)


def test_a_missing_operator_of_a_present_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Foreign("zentorch", "zentorch_nothing", (), "() -> Tensor", zentorch_ops.WOQ.fake)
    assert "not registered" in zentorch.missing(platform(), absent)[0]


def test_threads_packing_and_running_at_once() -> None:
    wrong: list[float] = []

    def work(seed: int) -> None:
        for step in range(10):
            for kernel, bits, group in (("zentorch.woq_linear", 4, 32), ("zentorch.dynamic_qlinear", 8, 0)):
                row = needed(kernel)
                weight = random_weight(128, 256, group, bits=bits, seed=1000 * seed + step)
                x = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed)).bfloat16()
                expected = reference(x, weight, None, row.activation or NO_ACTIVATION_QUANT)
                quality = sqnr_db(expected, pack_linear(weight, kernel)(x))
                if not quality > 40:
                    wrong.append(quality)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kernel", ["zentorch.woq_linear", "zentorch.dynamic_qlinear"])
def test_a_weight_first_used_by_several_threads_at_once(kernel: str) -> None:
    row = needed(kernel)
    bits, group = (4, 32) if "woq" in kernel else (8, 0)
    x = torch.randn(2, 2304).bfloat16()
    for seed in range(5):
        weight = random_weight(64, 2304, group, bits=bits, seed=seed)
        run, barrier, results = pack_linear(weight, kernel), threading.Barrier(4), list[Tensor]()

        def first_use(run: Any = run, barrier: threading.Barrier = barrier, results: list[Tensor] = results) -> None:
            barrier.wait()
            results.append(run(x))

        threads = [threading.Thread(target=first_use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = reference(x, weight, None, row.activation or NO_ACTIVATION_QUANT)
        assert [sqnr_db(expected, result) > 40 for result in results] == [True] * 4


def test_rows_that_are_not_finite_do_not_disturb_others() -> None:
    weight = random_weight(32, 128, bits=8)
    x = torch.randn(3, 128).bfloat16()
    damaged = x.clone()
    damaged[1, 5], damaged[2, 7] = float("nan"), float("inf")
    run = pack_linear(weight, "zentorch.dynamic_qlinear")
    assert torch.equal(run(damaged)[0], run(x)[0])
