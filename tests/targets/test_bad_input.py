"""Contradictory tensors are errors that name the argument, what was expected and what came; nothing crashes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.rows import needed
from support.weights import random_weight

from qcompile.activations import ActivationQuant
from qcompile.api import pack_linear
from qcompile.errors import WeightError

GOOD = random_weight(32, 128, 32, symmetric=False)
assert GOOD.zeros is not None
KERNELS = ("zentorch.woq_linear", "torch.int4pack", "reference.quantized_linear", None)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"codes": GOOD.codes.int()}, "codes"),
        ({"codes": GOOD.codes[0]}, "codes"),
        ({"codes": GOOD.codes + 1}, "codes"),
        ({"scales": GOOD.scales[:, :3]}, "scales"),
        ({"scales": GOOD.scales.int()}, "scales"),
        ({"scales": GOOD.scales * float("nan")}, "scales"),
        ({"scales": GOOD.scales * float("inf")}, "scales"),
        ({"zeros": GOOD.zeros[:-1]}, "zeros"),
        ({"zeros": GOOD.zeros.float()}, "zeros"),
        ({"zeros": GOOD.zeros + 30}, "zeros"),
        ({"group": 48}, "scales"),  # three groups, the last of which is short
        ({"group": 129}, "group"),
        ({"group": 0}, "group"),
        ({"group": -1}, "group"),
        ({"bits": 9}, "bits"),
        ({"perm": torch.zeros(128, dtype=torch.int64)}, "perm"),
    ],
)
def test_contradictory_weights(kernel: str | None, changes: dict[str, Any], argument: str) -> None:
    if kernel:
        needed(kernel)
    with pytest.raises(WeightError) as error:
        pack_linear(replace(GOOD, **changes), kernel)
    assert str(error.value).startswith(f"{argument}: expected ")
    assert ", got " in str(error.value)


def test_a_static_rounding_without_its_scale() -> None:
    needed("torch.qlinear_int8")
    with pytest.raises(WeightError, match="act_scale: expected a static activation scale"):
        pack_linear(random_weight(32, 128, bits=8), "torch.qlinear_int8", activation=ActivationQuant("tensor"))


@pytest.mark.parametrize("kernel", ["zentorch.woq_linear", "torch.int4pack", "zentorch.dynamic_qlinear", "torch.int8pack"])
def test_zero_scales_give_zeros_and_no_nan(kernel: str) -> None:
    needed(kernel)
    wide = kernel.endswith(("int8pack", "qlinear"))
    made = random_weight(32, 128, 0 if wide else 32, bits=8 if wide else 4)
    weight = replace(made, scales=torch.zeros_like(made.scales))
    assert not bool(pack_linear(weight, kernel)(torch.randn(3, 128).bfloat16()).any())


@pytest.mark.parametrize("kernel", ["zentorch.woq_linear", "zentorch.dynamic_qlinear", "torch.int4pack", "torch.qlinear_int8"])
def test_an_input_of_another_width_is_an_error(kernel: str) -> None:
    needed(kernel)
    wide = kernel.endswith(("int8", "qlinear"))
    run = pack_linear(random_weight(32, 128, 0 if wide else 32, bits=8 if wide else 4), kernel)
    with pytest.raises((RuntimeError, ValueError)):
        run(torch.randn(3, 100).bfloat16())


def test_x_of_another_dtype_than_the_weight_was_packed_for() -> None:
    weight = random_weight(32, 128, 32)
    run = pack_linear(weight, "torch.int4pack", torch.bfloat16)
    with pytest.raises(WeightError, match=r"x: expected torch.bfloat16, for which torch.int4pack packed .* got torch.float32"):
        run(torch.ones(1, 128))
    assert pack_linear(weight, "reference.quantized_linear")(torch.ones(1, 128)).dtype is torch.float32
