"""Attention is found as PyTorch's operator and spelled out, rewritten only where proven equal and where the options allow it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.native_weights import require_kernels
from torch import Tensor, nn

import qcompile
from qcompile.backend import compile_graph
from qcompile.hardware import platform
from qcompile.meaning import sqnr_db
from qcompile.options import resolve
from qcompile.reporting.report import report
from qcompile.reporting.rows import SiteReport
from qcompile.targets import native_attention

Forward = Callable[..., Tensor]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def require() -> None:
    require_kernels()
    reasons = native_attention.missing(platform())
    if reasons:
        pytest.skip(reasons[0])


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, rows, width = x.shape
    return x[:, :, None].expand(batch, heads, times, rows, width).reshape(batch, heads * times, rows, width)


def tensors(queries: int = 1, keys: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(2, queries, 8, 32, generator=generator).to(dtype).transpose(1, 2),
        torch.randn(2, 2, keys, 32, generator=generator).to(dtype),
        torch.randn(2, 2, keys, 32, generator=generator).to(dtype),
    )


def native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, repeated(k, 4), repeated(v, 4), attn_mask=mask)


def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=0.3)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def spelled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.matmul(q, repeated(k, 4).transpose(2, 3)) * 32**-0.5
    if mask is not None:
        scores = scores + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, repeated(v, 4)).transpose(1, 2).contiguous()


def scaled_before(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = (q / 4.0) @ (repeated(k, 4).transpose(2, 3) * 0.5)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ repeated(v, 4)


def hidden(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ repeated(k, 4).transpose(2, 3) * 0.2).masked_fill(~mask, -math.inf)
    return torch.softmax(scores, -1) @ repeated(v, 4)


def run(function: Forward, *arguments: Any, **options: Any) -> tuple[list[SiteReport], Tensor]:
    with torch.no_grad():
        got = torch.compile(function, backend="qcompile", options=options or None)(*arguments)
    return [row for row in report().others if row.format == "attention"], got


def added(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> Tensor:
    mask = torch.zeros(1, 1, queries, keys, dtype=dtype)
    mask[..., keys // 2 :] = torch.finfo(dtype).min
    return mask


@pytest.mark.parametrize("function", [native, grouped, spelled, scaled_before])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_every_spelling_is_found(function: Forward, masked: bool, rest: str) -> None:
    require()
    q, k, v = tensors(3)
    arguments = (q, k, v, added(3, 40)) if masked else (q, k, v)
    rows, got = run(function, *arguments, rest=rest)
    assert [row.kernel for row in rows] == ["native.attention"], [row.reasons for row in rows]
    assert "8 heads sharing 2" in rows[0].note
    assert sqnr_db(function(*arguments), got) >= 100.0
    assert got.stride() == function(*arguments).stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [native, spelled])
def test_half_precision(function: Forward, dtype: torch.dtype) -> None:
    require()
    q, k, v = tensors(1, 300, dtype)
    rows, got = run(function, q, k, v, rest="eager")
    assert [row.kernel for row in rows] == ["native.attention"], [row.reasons for row in rows]
    assert rows[0].sqnr_db is not None and rows[0].sqnr_db >= 40.0
    assert (
        sqnr_db(function(q.double(), k.double(), v.double()), got)
        >= sqnr_db(function(q.double(), k.double(), v.double()), function(q, k, v)) - 1
    )


def test_boolean_masks_and_queries_that_see_nothing() -> None:
    require()
    q, k, v = tensors(3)
    mask = torch.rand(2, 1, 3, 40) > 0.4
    mask[0, :, 1] = False
    rows, got = run(native, q, k, v, mask, rest="eager")
    assert rows[0].kernel == "native.attention" and bool(got.isfinite().all())
    assert sqnr_db(native(q, k, v, mask), got) >= 100.0
    torch._dynamo.reset()
    rows, got = run(hidden, q, k, v, mask, rest="eager")
    want = hidden(q, k, v, mask)
    assert torch.equal(got.isnan(), want.isnan()) and bool(want.isnan().any())
    assert sqnr_db(want.nan_to_num(), got.nan_to_num()) >= 100.0


def test_causal() -> None:
    require()
    q, k, v = tensors(5)
    rows, got = run(causal, q, k, v, rest="eager")
    assert rows[0].kernel == "native.attention" and sqnr_db(causal(q, k, v), got) >= 100.0


def on_itself(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def on_itself_spelled(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.transpose(2, 3) * 0.3, -1) @ x


def one_for_keys_and_values(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x * 2, x, x)


@pytest.mark.parametrize("function", [on_itself, on_itself_spelled, one_for_keys_and_values])
def test_one_tensor_may_be_several_operands(function: Forward) -> None:
    require()
    x = torch.randn(2, 4, 9, 32)
    (row,), got = run(function, x)
    assert row.kernel == native_attention.NAME, row.reasons
    torch.testing.assert_close(got, function(x), rtol=1e-4, atol=1e-4)


def test_more_query_rows_than_the_kernel_takes_stay_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.passes.attention.most_queries", lambda _: 64)
    q, k, v = tensors(65, 70)
    rows, got = run(grouped, q, k, v, rest="eager")
    assert rows[0].kernel is None and any(
        "takes up to 64 query rows, this graph has 65" in text for text in rows[0].reasons["native.attention"]
    )
    assert torch.equal(got, grouped(q, k, v))


@pytest.mark.parametrize(("name", "rows"), [("zen4", 1 << 62), ("x86-64-amx", 64), ("aarch64", 64)])
def test_how_many_query_rows_the_kernel_takes(name: str, rows: int) -> None:
    assert native_attention.most_queries(platform(name)) == rows


def test_a_changing_number_of_query_rows_is_one_graph() -> None:
    require()
    compiled = torch.compile(grouped, backend="qcompile", options={"rest": "eager"})
    with torch.no_grad():
        for queries in (3, 7, 64, 65, 200, 2):
            q, k, v = tensors(queries, 210)
            torch._dynamo.maybe_mark_dynamic(q, 2)
            assert sqnr_db(grouped(q, k, v), compiled(q, k, v)) >= 100.0
    rows = report().others
    assert [row.kernel for row in rows] == ["native.attention"] and "any number of query rows" in rows[0].note


def test_a_growing_cache_is_read_without_repetition() -> None:
    require()
    compiled = torch.compile(spelled, backend="qcompile", options={"rest": "eager"})
    with torch.no_grad():
        for keys in (20, 21, 22):
            q, k, v = tensors(1, keys)
            torch._dynamo.maybe_mark_dynamic(k, 2)
            torch._dynamo.maybe_mark_dynamic(v, 2)
            assert sqnr_db(spelled(q, k, v), compiled(q, k, v)) >= 100.0
    assert all("8 heads sharing 2" in row.note for row in report().others), [row.note for row in report().others]


def test_sizes_that_all_change_are_decided_at_run_time() -> None:
    require()
    compiled = torch.compile(grouped, backend="qcompile", dynamic=True, options={"rest": "eager"})
    with torch.no_grad():
        for queries in (3, 65):
            q, k, v = tensors(queries, 210)
            assert sqnr_db(grouped(q, k, v), compiled(q, k, v)) >= 100.0
    assert [row.kernel for row in report().others] == ["native.attention"]


def interleaved_otherwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k.repeat(1, 4, 1, 1), v.repeat(1, 4, 1, 1))


def not_normalized(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.exp(q @ repeated(k, 4).transpose(2, 3) * 0.1) @ repeated(v, 4)


def clipped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.tanh(q @ repeated(k, 4).transpose(2, 3) * 0.3), -1) @ repeated(v, 4)


def along_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ repeated(k, 4).transpose(2, 3) * 0.3, -2) @ repeated(v, 4)


def scaled_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (torch.softmax(q @ repeated(k, 4).transpose(2, 3) * 0.3, -1) * 0.5) @ repeated(v, 4)


def two_biases(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.softmax(q @ repeated(k, 4).transpose(2, 3) + a + b, -1) @ repeated(v, 4)


@pytest.mark.parametrize("function", [not_normalized, clipped, along_queries, scaled_after])
def test_what_only_looks_like_attention_is_left(function: Forward) -> None:
    q, k, v = tensors(3)
    rows, got = run(function, q, k, v, rest="eager")
    assert all(row.kernel is None and row.reasons["native.attention"] for row in rows)
    assert torch.equal(got, function(q, k, v))


def test_another_order_of_heads_is_not_taken_for_groups() -> None:
    require()
    q, k, v = tensors(3)
    rows, got = run(interleaved_otherwise, q, k, v, rest="eager")
    assert rows[0].kernel == "native.attention" and "sharing" not in rows[0].note
    assert sqnr_db(interleaved_otherwise(q, k, v), got) >= 100.0


def test_two_tensors_added_to_the_scores_are_a_reason() -> None:
    require()
    q, k, v = tensors(3)
    rows, got = run(two_biases, q, k, v, torch.randn(3, 40), torch.randn(1, 40), rest="eager")
    assert rows[0].reasons["native.attention"] == ("its scores meet more than one other tensor",)
    assert sqnr_db(two_biases(q, k, v, torch.zeros(3, 40), torch.zeros(1, 40)), got) < 100.0


def weights_too(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(q @ repeated(k, 4).transpose(2, 3), -1)
    return weights @ repeated(v, 4), weights


def test_weights_that_are_returned_are_a_reason() -> None:
    q, k, v = tensors(3)
    with torch.no_grad():
        torch.compile(weights_too, backend="qcompile", options={"rest": "eager"})(q, k, v)
    assert report().others[0].reasons["native.attention"] == ("its scores or weights are used elsewhere",)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"disable": ["native"]}, "disabled by option disable"),
        ({"disable": ["native.attention"]}, "disabled by option disable"),
        ({"kernels": ["native.int4"]}, "not in option kernels"),
        ({"fuel": 0}, "the rewrite budget (option fuel) is used up"),
    ],
)
def test_options_are_obeyed(options: dict[str, Any], text: str) -> None:
    if "fuel" in options:
        require()
    q, k, v = tensors()
    rows, got = run(grouped, q, k, v, rest="eager", **options)
    assert rows[0].kernel is None and text in rows[0].reasons["native.attention"]
    assert torch.equal(got, grouped(q, k, v))


def test_a_list_of_kernels_that_covers_it() -> None:
    require()
    assert run(grouped, *tensors(), rest="eager", kernels=["native"])[0][0].kernel == "native.attention"


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention, "missing", lambda _: ("was built without it",))
    q, k, v = tensors()
    rows, got = run(grouped, q, k, v, rest="eager")
    assert rows[0].reasons == {"native.attention": ("was built without it",)} and torch.equal(got, grouped(q, k, v))


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    monkeypatch.setattr("qcompile.recognize.attention_proof.call", lambda q, *_: torch.empty_like(q).fill_(0.5))
    q, k, v = tensors()
    rows, got = run(grouped, q, k, v, rest="eager")
    assert rows[0].kernel is None and "wrong on a probe" in rows[0].reasons["native.attention"][0]
    assert torch.equal(got, grouped(q, k, v))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Inner()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result: Tensor = self.attn(q, k, v)
        return result * 2


class Inner(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return grouped(q, k, v)


def test_rows_name_the_module_and_count_no_linear() -> None:
    require()
    rows, _ = run(Layer(), *tensors(), rest="eager")
    given = qcompile.report()
    assert rows[0].module == "attn" and given.sites == () and given.others == tuple(rows)
    assert given.summary == "qcompile: no quantized linear was compiled yet"
    assert "attn  attention  native.attention" in given.text()
    assert given.to_dict()["total"] == 0 and given.to_dict()["others"][0]["kernel"] == "native.attention"


def test_explain_says_what_would_happen_elsewhere() -> None:
    rows: list[SiteReport] = []
    settings = resolve({"platform": "zen4", "verify": "off"})

    def explaining(gm: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        return compile_graph(gm, inputs, settings, explained=rows)

    with torch.no_grad():
        torch.compile(grouped, backend=explaining)(*tensors())
    assert [row.kernel for row in rows if row.format == "attention"] == ["native.attention"]
