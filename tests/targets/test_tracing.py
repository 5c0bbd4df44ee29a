"""Packing and calls as graphs: few operators, no dependence on the sizes traced with, and Inductor computes the same."""

from collections.abc import Iterator

import pytest
import torch
from support.rows import needed
from support.tracing import call_graph, operators, packing_graph
from support.weights import random_weight
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.kernel import Kernel, Site, site_of
from qcompile.meaning import Operands

# name, bits, group, dtype, what the packing must show, most operators in a call (views and size reads not counted)
CASES = (
    ("zentorch.woq_linear", 4, 32, torch.bfloat16, "qcompile.zentorch_woq_repack_weight.default", 2),
    ("zentorch.dynamic_qlinear", 8, 0, torch.bfloat16, "qcompile.zentorch_prepack.default", 5),
    ("torch.int4pack", 4, 64, torch.float32, "aten._convert_weight_to_int4pack_for_cpu.default", 3),
    ("torch.int8pack", 8, 0, torch.bfloat16, "aten.view.default", 5),
    ("torch.qlinear_int8", 8, 0, torch.bfloat16, "qcompile.onednn_pack.default", 20),
)
VIEWS = ("view", "sym_size", "aten.t.default", "as_strided", "unsqueeze")


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Kernel, Site, Operands, str, int]]:
    name, bits, group, dtype, shown, most = request.param
    row = needed(name)
    weight = random_weight(64, 256, group, bits=bits, act_order=True)
    activation = ActivationQuant("token") if row.activation or not row.default_activation.is_none else ActivationQuant()
    bias = torch.randn(64)
    yield row, site_of(weight, dtype, bias, activation), Operands(weight.codes, weight.scales, None, weight.perm, bias), shown, most
    torch._dynamo.reset()


def inputs(site: Site, *leading: int) -> Tensor:
    return torch.randn(*leading, site.k).to(site.dtype)


def test_the_packing_stands_in_the_graph(case: tuple[Kernel, Site, Operands, str, int]) -> None:
    row, site, operands, shown, _ = case
    graph = packing_graph(row, site, operands)
    assert shown in operators(graph)
    given = [tensor for tensor in operands if tensor is not None]
    x = inputs(site, 4)
    assert torch.equal(row.run(x, tuple(graph(*given)), site), row.run(x, row.packed(operands, site), site))


def test_the_call_is_few_operators_for_any_size(case: tuple[Kernel, Site, Operands, str, int]) -> None:
    row, site, operands, _, most = case
    packed = row.packed(operands, site)
    graph = call_graph(row, site, packed)
    computing = [name for name in operators(graph) if not any(view in name for view in VIEWS)]
    assert len(computing) <= most, computing
    for leading in ((2, 2), (1, 7), (9, 33)):
        x = inputs(site, *leading)
        assert torch.equal(graph(x, *packed), row.run(x, packed, site))


def test_inductor_computes_the_same(case: tuple[Kernel, Site, Operands, str, int]) -> None:
    row, site, operands, _, _ = case
    packed = row.packed(operands, site)
    compiled = torch.compile(call_graph(row, site, packed), dynamic=True, fullgraph=True)
    with torch.no_grad():
        for leading in ((2, 5), (3, 8), (4, 33)):
            x = inputs(site, *leading)
            expected = row.run(x, packed, site)
            y = compiled(x, *packed)
            assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
            torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2 * float(expected.float().abs().max()))
