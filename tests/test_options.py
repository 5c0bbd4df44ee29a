"""Every option does what it says, and nothing that goes wrong inside stops the user's model."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.packed_linears import Stack
from support.spellings import BF16, SPELLINGS, K, N, Spelling, Written, int8, linear
from torch import Tensor

import qcompile
from qcompile import passes as pipeline_of
from qcompile.errors import UnknownNameError, UnservedError
from qcompile.kernel import Extras, Kernel, Site
from qcompile.meaning import Operands, dequantize, sqnr_db
from qcompile.reporting.rows import SiteReport
from qcompile.targets import reference
from qcompile.targets.registry import TARGETS
from qcompile.targets.registry import kernels as known

X = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(BF16)
EVERYTHING = tuple(TARGETS)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def spelling(name: str) -> Spelling:
    return next(row for row in SPELLINGS if row.name == name)


def run(model: Any, **options: Any) -> tuple[SiteReport, ...]:
    """Compile, compare with eager, and return the report's rows."""
    with torch.no_grad():
        want = model(X)
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", **options})(X)
    assert sqnr_db(want, got) >= 40
    return qcompile.report().sites


# Kernels made for a test: rows beside the real ones.


def right_call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    codes, scales, *zeros = packed
    return linear(x, dequantize(codes, scales, zeros[0] if zeros else None, site.group, site.codebook, x.dtype))


def fake(name: str, **fields: Any) -> Kernel:
    given = {"call": right_call, "seconds": lambda site, m, where: 1e-9, **fields}
    return replace(reference.KERNELS[0], name=f"fake.{name}", **given)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    rows = dict(known())

    def add(*new: Kernel) -> None:
        rows.update({row.name: row for row in new})

    for module in ("qcompile.targets.registry", "qcompile.passes.choose"):
        monkeypatch.setattr(sys.modules[module], "kernels", lambda: rows)
    monkeypatch.setattr(sys.modules["qcompile.targets.registry"], "TARGETS", (*TARGETS, "fake"))
    return add


def wrong_call(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
    return right_call(x, packed, extras, site) * 1.02


def raising(*_: Any) -> Any:
    raise RuntimeError("this kernel is broken")


def untraceable_pack(weight: Operands, site: Site) -> tuple[Tensor, ...]:
    return reference.pack(weight, site) if float(weight.scales.sum()) > 0 else ()


# Names and values.


def test_wrong_options_reach_the_caller() -> None:
    model = spelling("linear of the scaled").model()
    with pytest.raises(Exception, match=r"unknown option 'kernel'"), torch.no_grad():
        torch.compile(model, backend="qcompile", options={"kernel": ["native"]})(X)
    with pytest.raises(UnknownNameError, match=r"unknown option 'kernel'"):
        qcompile.compile(model, kernel=["native"])


def test_the_environment_reaches_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_KERNELS", "reference")
    assert [row.kernel for row in run(Stack(1))] == ["reference.quantized_linear"] * 4


# Choice.


def test_kernels_is_a_list_in_order(register: Any) -> None:
    register(fake("slow", seconds=lambda site, m, where: 1.0), fake("fast"))
    assert run(Stack(1))[0].kernel == "fake.fast"
    torch._dynamo.reset()
    rows = run(Stack(1), kernels=["fake.slow", "fake"])
    assert rows[0].kernel == "fake.slow"
    assert rows[0].reasons["fake.fast"][0].startswith("comes after fake.slow in option kernels")
    assert rows[0].reasons["reference.quantized_linear"] == ("not in option kernels",)


@pytest.mark.parametrize("name", ["fake", "fake.fast"])
def test_disable_takes_targets_and_kernels(register: Any, name: str) -> None:
    register(fake("fast"))
    rows = run(Stack(1), disable=[name])
    assert rows[0].kernel != "fake.fast"
    assert rows[0].reasons["fake.fast"] == ("disabled by option disable",)


def test_every_other_kernel_has_a_reason() -> None:
    for row in run(Stack(1)):
        assert set(row.reasons) == set(known()) - {row.kernel}
        assert all(sentences and all(sentences) for sentences in row.reasons.values())


def test_fallback_dense_folds_the_weight() -> None:
    rows = run(Stack(1), disable=EVERYTHING)
    assert {(row.kernel, row.fallback) for row in rows} == {(None, "dense")}
    assert all(row.bytes_after > row.bytes_before for row in rows)


def test_fallback_packed_leaves_the_weight() -> None:
    rows = run(Stack(1), disable=EVERYTHING, fallback="packed")
    assert {(row.kernel, row.fallback) for row in rows} == {(None, "packed")}
    assert all(row.bytes_after == row.bytes_before for row in rows)


def test_fallback_error_names_layers_and_reasons() -> None:
    with pytest.raises(Exception, match=r"layers\.0\.gate: .*disabled by option disable") as caught, torch.no_grad():
        torch.compile(Stack(1), backend="qcompile", options={"rest": "eager", "fallback": "error", "disable": EVERYTHING})(X)
    assert (
        isinstance(caught.value, UnservedError)
        or isinstance(caught.value.__cause__, UnservedError)
        or "UnservedError" in str(caught.value)
    )


def test_fallback_error_names_declined_layers() -> None:
    model = Written(lambda m, x: linear(x, m.w.to(BF16) + m.s), {"w": int8(), "s": torch.randn(N, K).to(BF16)})
    with pytest.raises(Exception, match="integers"), torch.no_grad():
        torch.compile(model, backend="qcompile", options={"rest": "eager", "fallback": "error"})(X)


@pytest.mark.parametrize("fuel", range(5))
def test_fuel_counts_rewrites(fuel: int) -> None:
    rows = run(Stack(1), kernels=["reference"], fuel=fuel)
    assert sum(row.kernel is not None for row in rows) == fuel
    assert [row.declined for row in rows if row.kernel is None] == ["the rewrite budget (option fuel) is used up"] * (4 - fuel)


def test_check_runs_the_graph_after_every_pass() -> None:
    assert [row.kernel for row in run(Stack(1), kernels=["reference"], check=True)] == ["reference.quantized_linear"] * 4


def test_check_finds_a_pass_that_changes_the_numbers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(state: Any) -> None:
        (output,) = state.graph.find_nodes(op="output")
        (result,) = output.args[0]
        with state.graph.inserting_before(output):
            double = state.graph.call_function(torch.ops.aten.mul.Tensor, (result, 2))
        double.meta = dict(result.meta)
        output.args = ([double],)

    _replace_pass(monkeypatch, "cleanup", spoil)
    rows = run(Stack(1), kernels=["reference"], check=True)
    assert "after cleanup: output 0 changed" in rows[0].declined
    assert "after cleanup: output 0 changed" in caplog.text


# Wrong and broken kernels.


@pytest.mark.parametrize("verify", ["structure", "every"])
def test_a_wrong_kernel_is_refused(register: Any, verify: str) -> None:
    register(fake("wrong", call=wrong_call))
    for row in run(Stack(1), verify=verify):
        assert row.kernel != "fake.wrong"
        assert "wrong on a probe: 33." in row.reasons["fake.wrong"][0]


def test_verify_off_believes_the_kernel(register: Any) -> None:
    register(fake("wrong", call=wrong_call))
    model = spelling("linear of the scaled").model()
    with torch.no_grad():
        got = torch.compile(model, backend="qcompile", options={"rest": "eager", "verify": "off"})(X)
        assert 33 < sqnr_db(model(X), got) < 35
    (row,) = qcompile.report().sites
    assert (row.kernel, row.sqnr_db) == ("fake.wrong", None)


def test_verify_structure_asks_once_and_every_asks_for_each(register: Any) -> None:
    asked: list[int] = []

    def counted(x: Tensor, packed: tuple[Tensor, ...], extras: Extras, site: Site) -> Tensor:
        asked.append(site.n)
        return right_call(x, packed, extras, site)

    register(fake("counted", call=counted))
    counts = []
    for verify in ("off", "structure", "every"):
        torch._dynamo.reset()
        asked.clear()
        run(Stack(3), verify=verify)
        counts.append(len(asked))
    off, structure, every = counts
    assert off < structure < every


BROKEN: dict[str, dict[str, Any]] = {
    "pack": {"pack": raising},
    "call": {"call": raising},
    "untraceable pack": {"pack": untraceable_pack},
    "shape": {"call": lambda x, packed, extras, site: right_call(x, packed, extras, site)[..., :-1]},
    "dtype": {"call": lambda x, packed, extras, site: right_call(x, packed, extras, site).double()},
    "NaN": {"call": lambda x, packed, extras, site: right_call(x, packed, extras, site) * float("nan")},
    "refuses": {"refuses": raising},
    "missing": {"missing": raising},
    "seconds": {"seconds": raising},
}


@pytest.mark.parametrize("verify", ["structure", "off"])
@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_kernel_does_not_stop_the_model(register: Any, part: str, verify: str) -> None:
    if verify == "off" and part in {"NaN", "shape", "dtype"}:
        return  # nothing looks at the numbers then
    register(fake("broken", **BROKEN[part]))
    rows = run(Stack(1), verify=verify)
    assert len(rows) == 4
    for row in rows:
        assert row.kernel != "fake.broken" and (row.kernel or verify == "off")
        assert row.reasons["fake.broken"][0]


@pytest.mark.parametrize("verify", ["structure", "off"])
@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_kernel_alone_leaves_the_model_dense(register: Any, part: str, verify: str) -> None:
    if verify == "off" and part in {"NaN", "shape", "dtype"}:
        return
    register(fake("broken", **BROKEN[part]))
    rows = run(Stack(1), verify=verify, disable=EVERYTHING)
    assert [row.kernel for row in rows] == [None] * 4
    assert all(row.reasons["fake.broken"][0] for row in rows)


def test_a_pack_that_fails_only_when_folding(register: Any) -> None:
    """The second packing fails, after the kernel was verified and chosen."""
    calls: list[int] = []

    def fails_later(weight: Operands, site: Site) -> tuple[Tensor, ...]:
        return (torch.ops.aten.alias.default(weight.codes), weight.scales)

    register(fake("late", pack=fails_later))
    from qcompile.weights.recipe import Recipe  # noqa: PLC0415 - to fail from inside

    evaluate = Recipe.evaluate

    def limited(self: Recipe, leaves: Any) -> Any:
        if any("alias" in str(node.target) for node in self.graph.nodes):
            calls.append(1)
            if len(calls) > 1:
                raise MemoryError("no memory")
        return evaluate(self, leaves)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "evaluate", limited)
        rows = run(Stack(2))
    assert len(rows) == 8
    failed = [row for row in rows if "fake.late" in row.reasons]
    assert failed and all("no memory" in row.reasons["fake.late"][0] for row in failed)


# Faults inside.


def _replace_pass(monkeypatch: pytest.MonkeyPatch, name: str, apply: Any) -> None:
    steps = tuple(replace(step, apply=apply) if step.name == name else step for step in pipeline_of.PIPELINE)
    monkeypatch.setattr("qcompile.run.compilation.PIPELINE", steps)


@pytest.mark.parametrize("rest", ["eager", "inductor"])
@pytest.mark.parametrize("name", [step.name for step in pipeline_of.PIPELINE])
def test_a_pass_that_raises_leaves_the_graph_as_it_was(monkeypatch: pytest.MonkeyPatch, name: str, rest: str) -> None:
    if rest == "inductor" and name not in {"recognize", "lower"}:
        return  # seconds each
    original = next(step.apply for step in pipeline_of.PIPELINE if step.name == name)

    def half(state: Any) -> None:
        original(state)
        raise RuntimeError("broken pass")

    _replace_pass(monkeypatch, name, half)
    rows = run(Stack(1), rest=rest, kernels=["reference"])
    _check_left_out(name, rows, "RuntimeError: broken pass")


@pytest.mark.parametrize("name", [step.name for step in pipeline_of.PIPELINE])
def test_a_pass_that_breaks_the_graph_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def break_graph(state: Any) -> None:
        nodes = list(state.graph.nodes)
        nodes[0].prepend(nodes[-2])  # uses its arguments before they exist

    _replace_pass(monkeypatch, name, break_graph)
    rows = run(Stack(1), kernels=["reference"])
    _check_left_out(name, rows, "RuntimeError: Argument")


def _check_left_out(name: str, rows: Any, reason: str) -> None:
    """A pass that the others can do without is left out, and nothing else is; without any other the graph stays as it was."""
    if name not in {"normalize", "fuse", "attention", "dense"}:
        (row,) = rows
        assert row.declined.startswith(f"the graph is compiled unchanged: {reason}") and len(row.declined.splitlines()) == 1
        return
    assert len(rows) > 1 and all(row.kernel for row in rows)
    text = f"pass {name} was left out: {reason}"
    if name in {"attention", "dense"}:
        (other,) = qcompile.report().others
        assert any(text in sentence for sentences in other.reasons.values() for sentence in sentences)
    else:
        assert all(text in row.note for row in rows)


@pytest.mark.parametrize(
    "target",
    [
        "qcompile.recognize.weight.Reader.read",
        "qcompile.passes.recognize.find_product",
        "qcompile.passes.recognize.raise_product",
        "qcompile.passes.recognize.recognize_activation",
        "qcompile.passes.choose.verify",
        "qcompile.weights.cache.PackedWeights.fetch",
        "qcompile.run.compilation.Runner",
        "qcompile.backend.Report",
        "qcompile.run.compilation._reorder",
    ],
)
def test_any_part_that_raises_leaves_the_model_running(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(target, raising)
    run(Stack(1), kernels=["reference"])


def test_passes_out_of_order_are_an_error() -> None:
    from qcompile.errors import PassOrderError  # noqa: PLC0415
    from qcompile.pipeline import check_order  # noqa: PLC0415

    with pytest.raises(PassOrderError, match="pass 'precompute' needs lowered"):
        check_order(tuple(step for step in pipeline_of.PIPELINE if step.name != "lower"))
