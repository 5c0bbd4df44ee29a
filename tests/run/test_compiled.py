"""Whole models through the back end: equal layers are compiled once, results, caches and shapes are those of one graph."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import compressed_tensors_folder, llama_config
from support.packed_linears import Stack
from torch import Tensor

import qcompile
from qcompile.meaning import sqnr_db
from qcompile.run import regions

WIDTH, DEPTH = 64, 14
# In float32 the same model computed twice agrees to 101 dB at the worst of 1,000 inputs, and to 23 dB if one linear of 56 is another;
# in bfloat16 the roundings of so many layers alone come to 22 dB.
DEEP_DB, DTYPE = 80, torch.float32


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[regions.Plan | None]:
    found: list[regions.Plan | None] = []
    plan = regions.plan

    def spy(gm: Any, inputs: Any) -> regions.Plan | None:
        found.append(plan(gm, inputs))
        return found[-1]

    monkeypatch.setattr(regions, "plan", spy)
    return found


def test_equal_layers_are_compiled_once(plans: list[regions.Plan | None], caplog: pytest.LogCaptureFixture) -> None:
    model, x = Stack(DEPTH, WIDTH, dtype=DTYPE), torch.randn(3, WIDTH, dtype=DTYPE)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="qcompile"):
        want, got = model(x), torch.compile(model, backend="qcompile")(x)
    (plan,) = plans
    assert plan is not None and plan.repeats[0].count >= DEPTH - 2 and len(plan.modules) <= 3
    assert sqnr_db(want, got) >= DEEP_DB
    assert len(qcompile.report().sites) == 4 * DEPTH and all(row.kernel for row in qcompile.report().sites)
    assert "each compiled once" in caplog.text


def test_one_piece_can_be_asked_for(plans: list[regions.Plan | None]) -> None:
    model, x = Stack(DEPTH, WIDTH, dtype=DTYPE), torch.randn(3, WIDTH, dtype=DTYPE)
    with torch.no_grad():
        want, got = model(x), torch.compile(model, backend="qcompile", options={"regional": False})(x)
    assert plans == []
    assert sqnr_db(want, got) >= DEEP_DB


def test_a_failure_to_cut_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no plan today")

    monkeypatch.setattr(regions, "plan", fail)
    model, x = Stack(DEPTH, WIDTH, dtype=DTYPE), torch.randn(3, WIDTH, dtype=DTYPE)
    with torch.no_grad():
        want, got = model(x), torch.compile(model, backend="qcompile")(x)
    assert sqnr_db(want, got) >= DEEP_DB
    assert all(row.kernel for row in qcompile.report().sites)


def test_sizes_that_change(plans: list[regions.Plan | None]) -> None:
    model = Stack(DEPTH, WIDTH, dtype=DTYPE)
    run: Any = torch.compile(model, backend="qcompile", dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 3), (3, 5), (7, 2)):
            x = torch.randn(batch, length, WIDTH, dtype=DTYPE)
            assert sqnr_db(model(x), run(x)) >= DEEP_DB
    assert plans and all(plan is not None for plan in plans)


def test_changed_weights_are_seen_in_every_layer() -> None:
    model: Any = Stack(DEPTH, WIDTH, dtype=DTYPE)
    x = torch.randn(3, WIDTH, dtype=DTYPE)
    run: Any = torch.compile(model, backend="qcompile")
    with torch.no_grad():
        before = run(x)
        for layer in (0, DEPTH // 2, DEPTH - 1):
            model.layers[layer].out.weight_scale.mul_(1.5)
            after = run(x)
            assert not torch.equal(before, after)
            assert sqnr_db(model(x), after) >= DEEP_DB
            before = after


def test_caches_are_written_in_place(plans: list[regions.Plan | None], tmp_path: Path) -> None:
    """A Llama-shaped stack with a static cache: each step's logits and the cache agree with the eager model."""
    config = llama_config(num_hidden_layers=6)
    folder = compressed_tensors_folder(tmp_path, config, bits=4, group=32).path
    library: Any = transformers
    model = qcompile.prepare(library.AutoModelForCausalLM.from_pretrained(folder).eval())
    run: Any = torch.compile(model.forward, backend="qcompile", fullgraph=True)
    caches = [library.StaticCache(config=config, max_cache_len=16) for _ in range(2)]
    mine, theirs = caches
    token = torch.tensor([[3]])
    addresses: list[int] = []
    with torch.no_grad():
        for step in range(6):
            at = torch.tensor([step])
            got: Tensor = run(token, past_key_values=mine, cache_position=at).logits
            want: Tensor = model(token, past_key_values=theirs, cache_position=at).logits
            assert sqnr_db(want, got) >= 35
            if step:  # the first call makes the cache
                addresses.append(mine.layers[3].keys.data_ptr())
            token = want[:, -1:].argmax(-1)
    for left, right in zip(theirs.layers, mine.layers, strict=True):
        assert sqnr_db(left.keys, right.keys) >= 35 and sqnr_db(left.values, right.values) >= 35
    assert len(set(addresses)) == 1
    assert plans[-1] is not None and plans[-1].repeats[0].count >= 4


@pytest.mark.parametrize("late", [False, True])
def test_views_of_what_the_layers_write(late: bool) -> None:
    """A view is made before all layers; each writes to its memory and reads the view in the same part or in the next one."""
    model: Any = Stack(DEPTH, WIDTH, dtype=DTYPE)

    def run(x: Tensor, *kept: Tensor) -> Tensor:
        views = [item.t() for item in kept]
        for layer, item, view in zip(model.layers, kept, views, strict=True):
            item.index_copy_(0, torch.arange(3), x)
            x = layer(x) + view.mean(1) if late else layer(x + view.mean(1))
        return x

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, WIDTH, generator=generator, dtype=DTYPE)
    mine = [torch.randn(5, WIDTH, generator=generator, dtype=DTYPE) * 0.1 for _ in range(DEPTH)]
    theirs = [item.clone() for item in mine]
    compiled: Any = torch.compile(run, backend="qcompile")
    with torch.no_grad():
        want, got = run(x, *theirs), compiled(x, *mine)
    assert sqnr_db(want, got) >= DEEP_DB
    assert all(sqnr_db(left, right) >= DEEP_DB for left, right in zip(theirs, mine, strict=True))


def test_a_layer_with_other_content_has_code_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Its scales cannot be used: it runs as it was written, the report says why, and all others are packed."""
    model: Any = Stack(DEPTH, WIDTH, dtype=DTYPE)
    odd = model.layers[DEPTH // 2].out
    with torch.no_grad():
        odd.weight_scale[0, 0] = float("inf")
    x = torch.randn(3, WIDTH, dtype=DTYPE)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="qcompile"):
        compiled: Any = torch.compile(model, backend="qcompile")
        want, got = model(x), compiled(x)
    assert torch.equal(want.isfinite(), got.isfinite())
    rows = {row.module: row for row in qcompile.report().sites}
    assert len(rows) == 4 * DEPTH
    refused = [name for name, row in rows.items() if row.kernel is None]
    assert refused == [f"layers.{DEPTH // 2}.out"]
    assert "NaN or infinity" in rows[refused[0]].declined
    assert "code of its own" in caplog.text


def test_every_layer_has_its_name_and_bytes_in_the_report() -> None:
    model, x = Stack(DEPTH, WIDTH, dtype=DTYPE), torch.randn(3, WIDTH, dtype=DTYPE)
    run: Any = torch.compile(model, backend="qcompile")
    with torch.no_grad():
        run(x)
        rows = qcompile.report().sites
        run(torch.randn(5, WIDTH, dtype=DTYPE))  # compiled again: the same rows
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith("weight_packed")}
    assert {row.module for row in rows} == names
    assert {row.module for row in qcompile.report().sites} == names and len(qcompile.report().sites) == len(rows)
    assert all(row.bytes_after > 0 and row.kernel for row in rows)


def test_released_layers_serve_a_second_shape() -> None:
    model: Any = Stack(DEPTH, WIDTH, dtype=DTYPE)
    x, y = (torch.randn(rows, WIDTH, dtype=DTYPE) for rows in (3, 6))
    run: Any = torch.compile(model, backend="qcompile", dynamic=False, options={"release": True})
    with torch.no_grad():
        want = model(x), model(y)
        got = run(x), run(y)
        again = run(x)
    assert all(sqnr_db(left, right) >= DEEP_DB for left, right in zip(want, got, strict=True))
    assert torch.equal(again, got[0])


def test_compiled_code_is_found_on_disk_the_next_time() -> None:
    from torch._dynamo.utils import counters  # noqa: PLC0415
    from torch._inductor.utils import fresh_cache  # noqa: PLC0415

    x = torch.randn(3, WIDTH, dtype=DTYPE)
    with torch.no_grad(), fresh_cache():
        for again in (False, True):
            model = Stack(DEPTH, WIDTH, dtype=DTYPE)  # other weights: compiled code does not depend on them
            torch._dynamo.reset()
            counters.clear()
            assert sqnr_db(model(x), torch.compile(model, backend="qcompile")(x)) >= DEEP_DB
            found = {name: count for name, count in counters["inductor"].items() if name.startswith("fxgraph_cache")}
            assert ("fxgraph_cache_miss" in found) is not again, found


def test_a_graph_that_turns_out_to_need_one_piece_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw weights are only released once it is certain that the parts stay."""
    from qcompile.run.regions import SplitError, build  # noqa: PLC0415

    def late(*_: Any) -> None:
        raise SplitError("found out at the end")

    monkeypatch.setattr(build.__globals__["_Builder"], "_check_writes", late)
    model, x = Stack(DEPTH, WIDTH, dtype=DTYPE), torch.randn(3, WIDTH, dtype=DTYPE)
    run: Any = torch.compile(model, backend="qcompile", options={"release": True})
    with torch.no_grad():
        want = model(x)
        got = run(x)
    assert sqnr_db(want, got) >= DEEP_DB
    rows = qcompile.report().sites
    assert len(rows) == 4 * DEPTH and all(row.kernel for row in rows)
    assert {row.graph for row in rows} == {rows[0].graph}
