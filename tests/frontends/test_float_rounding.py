"""Rounding of activations to small floats is that of compressed-tensors, bit by bit; schemes that ask for it are told apart."""

from importlib import import_module
from typing import Any

import pytest
import torch
from support.float_inputs import inputs, same_bits
from torch import Tensor

from qcompile.activations import ActivationQuant
from qcompile.float_rounding import FLOAT_KINDS, rounded
from qcompile.frontends.float_schemes import float_activation

PRESETS = {
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "fp8_token": "FP8_DYNAMIC",
    "fp8_group": "FP8_BLOCK",
    "fp8_tensor": "FP8",
}
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "f32"])
KINDS = pytest.mark.parametrize("kind", FLOAT_KINDS)


def scheme(kind: str) -> Any:
    library: Any = import_module("compressed_tensors.quantization")
    return library.preset_name_to_scheme(PRESETS[kind], ["Linear"])


def theirs(x: Tensor, kind: str, scale: Tensor | None) -> Tensor:
    forward: Any = import_module("compressed_tensors.quantization.lifecycle.forward")
    helpers: Any = import_module("compressed_tensors.quantization.utils.helpers")
    args, whole = scheme(kind).input_activations, scale if kind == "nvfp4" else None
    if kind == "fp8_tensor":
        step, zero = scale, torch.zeros(1, dtype=x.dtype)
    else:
        step, zero = helpers.compute_dynamic_scales_and_zp(value=x.clone(), args=args, module=None, global_scale=whole)
    result: Tensor = forward.fake_quantize(x.clone(), step, zero, args, global_scale=whole)
    return result


@KINDS
@DTYPES
def test_is_what_the_library_computes(dtype: torch.dtype, kind: str) -> None:
    given: dict[str, list[Tensor | None]] = {
        "nvfp4": [torch.tensor([value]) for value in (672.0, 1e-3, 3e7)],
        "fp8_tensor": [torch.tensor([value]).to(dtype) for value in (0.013, 2.0)],
    }
    for words, x in inputs(dtype):
        for scale in given.get(kind, [None]):
            assert same_bits(rounded(x, kind, scale), theirs(x, kind, scale)), words
            assert same_bits(ActivationQuant(kind, arithmetic="input").apply(x, scale), theirs(x, kind, scale)), words


@KINDS
def test_a_scheme_is_told(kind: str) -> None:
    found = scheme(kind)
    assert float_activation(found.input_activations, found.weights.num_bits) == kind
    quant = ActivationQuant(kind, arithmetic="input")
    assert ActivationQuant.parse(quant.spec) == quant and quant.to_floats and quant.is_static == FLOAT_KINDS[kind].static


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("nvfp4", {"group_size": 32}),
        ("nvfp4", {"dynamic": False}),
        ("mxfp4", {"scale_dtype": None}),
        ("mxfp8", {"group_size": 64}),
        ("fp8_group", {"group_size": 64}),
        ("fp8_group", {"dynamic": False}),
        ("fp8_token", {"scale_dtype": torch.float8_e4m3fn}),
        ("fp8_token", {"num_bits": 6}),
    ],
    ids=str,
)
def test_a_scheme_that_is_nearly_one_of_them_is_not(kind: str, changes: dict[str, Any]) -> None:
    found = scheme(kind)
    args = found.input_activations.model_copy(update=changes)
    assert float_activation(args, found.weights.num_bits) is None


def test_without_its_scale_a_static_kind_is_an_error() -> None:
    for kind in ("nvfp4", "fp8_tensor"):
        with pytest.raises(ValueError, match="act_scale: expected a static activation scale"):
            ActivationQuant(kind).apply(torch.ones(1, 16))
