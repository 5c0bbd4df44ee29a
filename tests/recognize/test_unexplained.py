"""Nothing quantized goes unmentioned: what no pass reads has a row that says which operator takes it, and nothing else has one."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import foreign_operators
from support.layer_stacks import Broken, Layer, Stack, compiled
from torch import Tensor, nn
from torch.nn import functional

import qcompile
from qcompile.reporting.rows import SiteReport

pytestmark = pytest.mark.usefixtures("fresh_compiler")
Forward = Callable[[Any, Tensor], Tensor]


def codes(*shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return torch.randint(0, 100, shape).to(dtype)


class Holding(nn.Module):
    """A module `net.fc` with these buffers, and the forward that uses them."""

    def __init__(self, forward: Forward, **buffers: Tensor) -> None:
        super().__init__()
        self.fc = nn.Module()
        for name, tensor in buffers.items():
            self.fc.register_buffer(name, tensor)
        self.used = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.fc, x)


def rows_of(model: nn.Module, x: Tensor) -> tuple[list[SiteReport], list[str]]:
    """(what the report says, what was warned of); the result is what eager gives."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        expected = model(x)
        torch.testing.assert_close(compiled(model)(x), expected, rtol=1e-4, atol=1e-3)
    return list(qcompile.report().sites), [str(item.message) for item in said if "qcompile" in str(item.message)]


def bitsandbytes(fc: Any, x: Tensor) -> Tensor:
    return foreign_operators.gemm_4bit(x, fc.codes, fc.absmax)


def quanto(fc: Any, x: Tensor) -> Tensor:
    return foreign_operators.qbytes_mm(x, fc.codes, fc.scale)


def integers(fc: Any, x: Tensor) -> Tensor:
    """W8A8 as torchao and Quark compute it."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    rounded = torch.round(x / scale).to(torch.int8)
    return torch.ops.aten._int_mm(rounded, fc.codes.t()).to(x.dtype) * scale * fc.scale.t()


def convolution(fc: Any, x: Tensor) -> Tensor:
    return functional.conv1d(x[None, :, :32].transpose(1, 2), fc.codes.to(x.dtype)[..., None] * fc.scale[..., None])


def embedding(fc: Any, x: Tensor) -> Tensor:
    return functional.embedding((x[:, 0].abs() * 10).long() % 8, fc.codes.to(x.dtype) * fc.scale)


def rows_looked_up(fc: Any, x: Tensor) -> Tensor:
    index = (x[:, 0].abs() * 10).long() % 8
    return fc.codes[index].to(x.dtype) * fc.scale[index]


CASES: dict[Forward, str] = {
    bitsandbytes: "its weight goes into foreign::gemm_4bit, an operator that qcompile cannot read",
    quanto: "its weight goes into foreign::qbytes_mm, an operator that qcompile cannot read",
    integers: "its int8 codes are multiplied as they are by aten::_int_mm; only products with a dequantized weight are rewritten",
    convolution: "it is the weight of a convolution; only linears are rewritten",
    embedding: "it is the table of an embedding; only linears are rewritten",
    rows_looked_up: "its rows are looked up as in an embedding; only linears are rewritten",
}


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_what_no_pass_reads_has_a_row_and_a_warning(forward: Forward) -> None:
    buffers = {"codes": codes(32, 32), "scale": torch.rand(32, 1)}
    if forward is bitsandbytes:
        buffers = {"codes": codes(512, 1, dtype=torch.uint8), "absmax": codes(32, 1, dtype=torch.uint8)}
    (row,), said = rows_of(Holding(forward, **buffers), torch.randn(32, 32))
    assert (row.module, row.declined, row.kernel) == ("fc", CASES[forward], None)
    (text,) = said
    assert f"fc: {CASES[forward]}" in text


def test_float8_codes_are_mentioned() -> None:
    held = Holding(quanto, codes=torch.randn(32, 32).to(torch.float8_e4m3fn), scale=torch.rand(32, 1))
    (row,), _ = rows_of(held, torch.randn(2, 32))
    assert "foreign::qbytes_mm" in row.declined


def test_one_warning_for_many_layers() -> None:
    layers = [Holding(quanto, codes=codes(32, 32), scale=torch.rand(32, 1) * 0.01) for _ in range(3)]
    rows, said = rows_of(nn.Sequential(*layers), torch.randn(2, 32))
    assert [row.module for row in rows] == ["0.fc", "1.fc", "2.fc"]
    assert len(said) == 1
    assert "2 more" in said[0]


def test_no_warning_where_others_were_read() -> None:
    rows, said = rows_of(nn.Sequential(Layer(), Holding(quanto, codes=codes(32, 32), scale=torch.rand(32, 1))), torch.randn(2, 32))
    assert [(row.module, bool(row.kernel)) for row in rows] == [("0", True), ("1.fc", False)]
    assert not said


def index_table(fc: Any, x: Tensor) -> Tensor:
    return x[:, fc.codes[:, 0].long()]


def bias_by_index(fc: Any, x: Tensor) -> Tensor:
    return x + fc.bias[fc.codes[0].long()]


def mask(fc: Any, x: Tensor) -> Tensor:
    return torch.softmax(x @ x.t() + (1 - fc.codes.to(x.dtype)) * -1e9, -1) @ x


def picture(fc: Any, x: Tensor) -> Tensor:
    return functional.conv2d(fc.codes[None, None].to(x.dtype) / 255, x[None, None, :3, :3])


def rows_by_position(fc: Any, x: Tensor) -> Tensor:
    return fc.codes[(x[:, 0].abs() * 10).long() % 8].to(x.dtype) + x


def counted(fc: Any, x: Tensor) -> Tensor:
    return x / fc.codes[0, 0] + fc.codes.sum()


@pytest.mark.parametrize(
    "forward", [index_table, bias_by_index, mask, picture, rows_by_position, counted], ids=lambda forward: forward.__name__
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_tables_masks_and_pictures_are_no_quantized_weights(forward: Forward, dtype: torch.dtype) -> None:
    held = Holding(forward, codes=torch.randint(1, 32, (32, 32)).to(dtype), bias=torch.rand(32))
    rows, said = rows_of(held, torch.randn(32, 32))
    assert not rows
    assert not said


class Eager(Layer):
    """Dynamo leaves it out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch._dynamo.disable(super().forward)(x)


def test_layers_that_come_into_no_graph_are_listed_once_the_model_ran() -> None:
    model = nn.Sequential(Layer(), Eager(), Layer())
    model.register_buffer("picture", torch.zeros(32, 32, dtype=torch.uint8))
    rows, _ = rows_of(model, torch.randn(2, 32))
    assert [(row.module, bool(row.kernel)) for row in rows] == [("0", True), ("2", True), ("1", False)]
    assert rows[-1].declined == "its code did not come into any compiled graph"
    assert qcompile.report().summary == "qcompile: 2 of 3 quantized linears rewritten"


def test_code_compiled_for_another_layer_may_run_one_that_is_left_as_it_was() -> None:
    model = Broken(2, lambda: Holding(quanto, codes=codes(32, 32), scale=torch.rand(32, 1) * 0.01))
    rows, _ = rows_of(model, torch.randn(2, 32))
    assert [row.module for row in rows] == ["layers.0.fc", "layers.1.fc"]
    assert "it may run what was compiled for layers.0.fc" in rows[1].declined


def test_explain_lists_them_too() -> None:
    rows = qcompile.explain(nn.Sequential(Layer(), Eager()).eval(), torch.randn(2, 32)).sites
    assert [(row.module, bool(row.kernel)) for row in rows] == [("0", True), ("1", False)]
    rows = qcompile.explain(Broken(2).eval(), torch.randn(2, 32)).sites
    assert [(row.module, bool(row.kernel)) for row in rows] == [("layers.0", True), ("layers.1", True)]
    assert not qcompile.report().sites


def test_layers_that_share_code_are_counted_once_however_often_they_are_compiled() -> None:
    model = qcompile.compile(Broken(3).eval(), rest="eager", measure=False)
    with torch.no_grad():
        for count in (2, 3, 1):
            model(torch.randn(count, 32))
    assert sorted(row.module for row in qcompile.report().sites) == ["layers.0", "layers.1", "layers.2"]
    assert qcompile.report().summary == "qcompile: 3 of 3 quantized linears rewritten"


def test_layer_that_one_graph_leaves_is_not_counted_as_served() -> None:
    model, x = Stack(1).eval(), torch.randn(2, 32)
    with torch.no_grad():
        first, second = compiled(model), compiled(model, fuel=0)
        first(x)
        assert qcompile.report().served
        with pytest.warns(UserWarning, match="option fuel"):
            second(torch.randn(2, 3, 32))
    (row,) = qcompile.report().sites
    assert row.kernel is None
    assert "native.int4 in graph" in row.note


class InBranches(nn.Module):
    """The same linear in both branches of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = Layer(), Layer()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.yes, self.no, (x,))


def test_linears_in_branches_have_rows() -> None:
    model = InBranches()
    width = next(iter(model.yes.buffers())).shape[-1]
    sites, _ = rows_of(model, torch.randn(2, width))
    reason = "it is used inside cond (a branch, or the body of a loop), where linears are not rewritten"
    assert {(site.module, site.declined) for site in sites} == {("yes", reason), ("no", reason)}


def test_a_float8_scale_has_no_row_beside_that_of_its_weight() -> None:
    """The weight is declined, and its scale, low-bit data of another buffer, is no second weight."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("q", torch.randint(-8, 8, (32, 21), dtype=torch.int8))
            self.register_buffer("s", (torch.rand(32, 2) + 0.5).to(torch.float8_e4m3fn))
            self.register_buffer("noise", torch.randn(32, 21))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.q.float() * self.s.float().repeat_interleave(16, 1)[:, :21] + self.noise).t()

    sites, _ = rows_of(Both(), torch.randn(2, 21))
    (site,) = sites
    assert site.module == "q" and "does not become integers" in site.declined


class InTwoGraphs(Layer):
    """As AMD Quark's modules: the graph ends between the dequantization and the product. Its zero points are a module's of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = nn.Module()
        self.quantizer.register_buffer("scale", torch.rand(32, 4))
        self.quantizer.register_buffer("zero_point", torch.zeros(32, 4, dtype=torch.int8))

    def dense(self) -> Tensor:
        return (self.codes - self.quantizer.zero_point[:, :1]).float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        weight = self.dense()
        torch._dynamo.graph_break()
        return functional.linear(x, weight)


def test_a_weight_that_leaves_its_graph_has_a_row_and_a_warning() -> None:
    rows, said = rows_of(Stack(3, InTwoGraphs), torch.randn(2, 32))
    assert sorted(row.module for row in rows) == ["layers.0", "layers.1", "layers.2"]
    first = "its weight is in a graph that has no product with it: the code is broken into several graphs between the two"
    assert {row.declined for row in rows} <= {
        first,
        "its code did not come into any compiled graph of its own; it may run what was compiled for layers.0",
    }
    assert next(row.declined for row in rows if row.module == "layers.0") == first
    assert said and "none could be rewritten" in said[0]
