"""Packed weights live as long as their raw ones; raw ones can be released; one graph serves many layers and models."""

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.packed_linears import Stack, packed_linear
from support.spellings import BF16, SPELLINGS, K, N, Written, int4, int8, linear, scale
from torch import Tensor, nn

import qcompile
from qcompile import debug
from qcompile.errors import ReleasedWeightError
from qcompile.meaning import sqnr_db
from qcompile.run.runner import Runner
from qcompile.weights.cache import STORE

EAGER: dict[str, Any] = {"rest": "eager", "kernels": ["reference"]}
X = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(BF16)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="qcompile", options={**EAGER, **options})


_earlier: list[Runner] = []


@pytest.fixture(autouse=True)
def earlier_runners() -> Iterator[None]:
    """What other tests of this process left does not count."""
    _earlier[:] = runners()
    yield
    _earlier.clear()


def runners() -> list[Runner]:
    """All of this test."""
    gc.collect()
    return [item for item in gc.get_objects() if type(item) is Runner and not any(item is other for other in _earlier)]


def packed_bytes() -> int:
    return sum(tensor.nbytes for runner in runners() for weights in runner.weights.values() for tensor in weights.tensors)


def good(model: Any, run: Any, x: Tensor = X) -> bool:
    with torch.no_grad():
        return sqnr_db(model(x), run(x)) >= 40


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_nothing_is_left_of_a_model_that_is_gone(rest: str) -> None:
    for _ in range(2):
        before = set(STORE.results.entries)  # what other tests of this process left to its garbage
        model = Stack(1)
        run = compiled(model, rest=rest)
        assert good(model, run)
        assert set(STORE.results.entries) - before
        dead = weakref.ref(model.layers[0].gate.weight_packed)  # type: ignore[union-attr]
        del model, run
        assert packed_bytes() == 0
        assert dead() is None and not set(STORE.results.entries) - before


def test_a_replaced_weight_is_packed_in_the_old_ones_place() -> None:
    model = Written(lambda m, x: linear(x, m.q * m.s), {"q": int4(), "s": scale(N, 1)})
    run = compiled(model)
    assert good(model, run)
    size = packed_bytes()
    for _ in range(3):
        model.q = int4()
        assert good(model, run)
        assert packed_bytes() == size


def test_tied_weights_are_packed_once() -> None:
    tied = packed_linear(K, K)
    model = nn.Sequential(tied, packed_linear(K, K), tied)
    run = compiled(model)
    assert good(model, run)
    (runner,) = runners()
    (weights,) = runner.weights.values()
    assert len(weights.tensors) == len({id(tensor) for tensor in weights.tensors}) == 2 * 2  # codes and scales of two layers


def test_two_graphs_share_what_they_packed() -> None:
    model = packed_linear(N, K)
    run = compiled(model)
    other = compiled(lambda x: model(x) + 1)
    assert good(model, run)
    with torch.no_grad():
        other(X)
    first, second = ([id(tensor) for weights in runner.weights.values() for tensor in weights.tensors] for runner in runners())
    assert first == second


def test_the_same_model_compiled_twice() -> None:
    model = Stack()
    for _ in range(2):
        assert good(model, compiled(model))
    assert good(model, compiled(model, fallback="packed", disable=["reference"], kernels=[]))


def test_one_graph_serves_every_layer_without_packing_again() -> None:
    """Layers compiled one by one share their compiled code."""
    model, same = Stack(4), Stack(4)
    same.load_state_dict(model.state_dict())
    for layer in model.layers:
        layer.compile(backend="qcompile", options=EAGER)
    with torch.no_grad():
        want = same(X)
        assert sqnr_db(want, model(X)) >= 40
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        before = debug.counters()
        for _ in range(3):
            assert sqnr_db(want, model(X)) >= 40
        assert debug.counters() == before


def test_the_report_has_a_row_for_every_layer_that_runs_shared_code() -> None:
    model = Stack(3)
    for layer in model.layers:
        layer.compile(backend="qcompile", options=EAGER)
    with torch.no_grad():
        for _ in range(2):
            model(X)
    sites = qcompile.report().sites
    assert len(sites) == 12 and all(site.kernel == "reference.quantized_linear" for site in sites)
    assert [("runs the code of graph" in site.note) for site in sites] == [False] * 4 + [True] * 8


def test_a_replaced_weight_is_no_further_layer() -> None:
    model = Stack(2)
    run = compiled(model)
    with torch.no_grad():
        run(X)
        layer: Any = model.layers[0].up
        layer.weight_scale = nn.Parameter(layer.weight_scale.detach() * 2, requires_grad=False)
        assert good(model, run)
    assert len(qcompile.report().sites) == 8


def test_two_models_in_turn() -> None:
    models = [Stack(), Stack()]
    runs = [compiled(model) for model in models]
    for _ in range(3):
        for model, run in zip(models, runs, strict=True):
            assert good(model, run)
    with torch.no_grad():
        models[0].layers[1].up.weight_scale.mul_(2)  # type: ignore[union-attr,operator]
    for model, run in zip(models, runs, strict=True):
        assert good(model, run)


def test_threads_give_the_same_numbers() -> None:
    models = [Stack() for _ in range(2)]
    runs = [compiled(model) for model in models]
    with torch.no_grad():
        wanted = [model(X) for model in models]
        failed: list[Any] = []

        def work(index: int) -> None:
            try:
                with torch.no_grad():
                    for _ in range(20):
                        assert sqnr_db(wanted[index], runs[index](X)) >= 40
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1, 0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def storage_bytes(model: nn.Module) -> int:
    return sum(tensor.untyped_storage().size() for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize(("rest", "asymmetric"), [("eager", False), ("eager", True), ("inductor", False)])
def test_release_frees_the_raw_weights_and_the_compiled_model_goes_on(rest: str, asymmetric: bool) -> None:
    model = Stack(1, asymmetric=asymmetric)
    run = compiled(model, rest=rest, release=True)
    shapes = [X, torch.cat([X, X]), X.repeat(5, 1)]
    with torch.no_grad():
        wanted = [model(x) for x in shapes]
        before = storage_bytes(model)
        assert before > 0
        for want, x in zip(wanted, shapes, strict=True):
            assert sqnr_db(want, run(x)) >= 40  # the later ones compile again, without the raw weights
            assert storage_bytes(model) == 0
        with pytest.raises(ReleasedWeightError, match=r"layers\.0\.gate\.weight_packed was released.*load the checkpoint again"):
            model(X)


def test_release_of_layers_compiled_one_by_one() -> None:
    model, same = Stack(3), Stack(3)
    same.load_state_dict(model.state_dict())
    for layer in model.layers:
        layer.compile(backend="qcompile", options={**EAGER, "release": True})
    for _ in range(2):
        assert good(same, model)
    assert storage_bytes(model) == 0


def test_a_graph_compiled_before_the_release_goes_on() -> None:
    model = Stack()
    kept = compiled(model)
    with torch.no_grad():
        want = model(X)
    assert good(model, kept)
    released = compiled(model, release=True)
    with torch.no_grad():
        for _ in range(2):
            assert sqnr_db(want, released(X)) >= 40
            assert sqnr_db(want, kept(X)) >= 40


def test_a_new_scale_for_a_released_weight_is_refused_loudly() -> None:
    model = Stack(asymmetric=True)
    run = compiled(model, release=True)
    with torch.no_grad():
        run(X)
        model.layers[0].up.weight_scale = nn.Parameter(scale(64, 2), requires_grad=False)  # type: ignore[union-attr,assignment]
        for _ in range(2):
            with pytest.raises(ReleasedWeightError, match=r"layers\.0\.(gate|up)\.weight"):
                run(X)


def test_release_survives_a_reset() -> None:
    model = Stack()
    run = compiled(model, release=True)
    with torch.no_grad():
        want = model(X)
        run(X)
        torch._dynamo.reset()
        assert sqnr_db(want, compiled(model)(X)) >= 40


def test_weights_that_own_code_reads_are_not_released(caplog: pytest.LogCaptureFixture) -> None:
    """Plain operators do not check for memory: an eager call would crash the process."""
    model = next(spelling for spelling in SPELLINGS if spelling.name == "linear of the scaled").model()
    before = storage_bytes(model)
    with caplog.at_level(logging.INFO, logger="qcompile"):
        assert good(model, compiled(model, release=True))
    assert storage_bytes(model) == before
    assert "would crash without them" in caplog.text


def test_memory_that_two_tensors_share_is_not_released() -> None:
    model = packed_linear(N, K)
    whole = torch.cat([model.weight_packed, model.weight_packed])  # type: ignore[list-item]
    model.weight_packed = nn.Parameter(whole[:N], requires_grad=False)
    with torch.no_grad():
        want = model(X)
        run = compiled(model, release=True)
        assert sqnr_db(want, run(X)) >= 40
    assert whole.untyped_storage().size() == whole.nbytes
    assert model.weight_scale.untyped_storage().size() == 0  # type: ignore[union-attr,operator]


def test_explaining_releases_nothing() -> None:
    model = Stack()
    qcompile.explain(model, X, options={"release": True, "kernels": ["reference"]})
    assert storage_bytes(model) > 0


def test_many_models_in_one_process() -> None:
    """A library that remembers by address must not meet an address again."""
    for seed in range(8):
        torch.manual_seed(seed)
        model = Stack(1) if seed % 2 else Written(lambda m, x: linear(x, m.w.to(BF16)) * m.s, {"w": int8(), "s": scale(N)})
        run = torch.compile(model, backend="qcompile", options={"rest": "eager", "allow_a8": bool(seed % 4 > 1)})
        with torch.no_grad():
            assert sqnr_db(model(X), run(X)) >= (30 if seed % 4 > 1 else 40)
        del model, run
        torch._dynamo.reset_code_caches()
        gc.collect()
