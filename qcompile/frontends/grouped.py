"""What GPTQ's and AWQ's front doors share: finding modules with qweight / qzeros / scales, and whether to touch them at all."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import QCompileError, UnsupportedSchemeError
from qcompile.frontends import notes
from qcompile.frontends.linear import FRONT_DOOR_CLASSES, GroupedLinear, become
from qcompile.operators import Structure, dense_weight

# Torch implementations of the libraries, whose tensors are still in the checkpoint's order. Others (Marlin, ExLlama, fused ATen)
# have transformed theirs and stay as they are.
LIBRARIES = ("gptqmodel.", "auto_gptq.", "awq.", "optimum.")
PLAIN_CLASSES = ("TorchQuantLinear", "TorchLinear", "QuantLinear", "WQLinear_GEMM", "AwqTorchQuantLinear", "AwqTorchLinear")

# A layer's own forward and ours may differ by the rounding of one 16-bit product.
PROBE_TOLERANCE = 2e-2


def candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, module) of every module that holds int32 qweight and float scales and is not ours already."""
    for path, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        qweight, scales = tensors.get("qweight"), tensors.get("scales")
        if qweight is None or scales is None or isinstance(module, FRONT_DOOR_CLASSES) or notes.DECLINED in module.__dict__:
            continue
        if qweight.dtype == torch.int32 and qweight.dim() == 2 and scales.dim() == 2 and scales.is_floating_point():
            yield path, module


def of_library(module: nn.Module) -> bool:
    """Whether the class is a quantization library's, or qcompile.load made the module (and it is not somebody's own code)."""
    return type(module).__module__.startswith(LIBRARIES) or is_loaded(module)


def is_loaded(module: nn.Module) -> bool:
    return "qcompile_loaded" in module.__dict__


def in_checkpoint_order(module: nn.Module) -> bool:
    return type(module).__name__ in PLAIN_CLASSES or is_loaded(module)


def left_as_it_is(module: nn.Module, error: QCompileError, form: str) -> None:
    """Note that a library's layer is not served because of `error`; in other code tensors of these names may mean other things."""
    if not of_library(module):
        return
    if not in_checkpoint_order(module):
        left_in_kernels_order(module, form)
        return
    why = f"scheme {error.scheme} is not supported" if isinstance(error, UnsupportedSchemeError) else str(error)
    notes.decline(module, notes.Declined(f"{why}: left as it is", form))


def left_in_kernels_order(module: nn.Module, form: str, n: int = 0, k: int = 0) -> None:
    why = f"{type(module).__name__} keeps its tensors in a kernel's own order: left as it is"
    notes.decline(module, notes.Declined(why, form, n, k))


def traceable(module: nn.Module, x: Tensor) -> bool:
    """Whether Dynamo captures the module's own forward as one graph; such modules need no front door."""
    reached: list[bool] = []

    def backend(gm: Any, _: Any) -> Callable[..., Any]:
        reached.append(True)
        forward: Callable[..., Any] = gm.forward
        return forward

    try:
        with torch.no_grad():
            torch.compile(module.forward, backend=backend, fullgraph=True)(x)
    except Exception:  # whatever its forward does, the answer is no
        return False
    return len(reached) == 1


def own_result(module: nn.Module, x: Tensor) -> Tensor | None:
    """What the module's own forward gives for x, or None if it cannot run here."""
    try:
        with torch.no_grad():
            result = module(x)
    except Exception:  # a forward that needs another device or a library's kernel
        return None
    return result if isinstance(result, Tensor) else None


def agreement(module: Any, structure: Structure, used: tuple[bool, bool], x: Tensor, expected: Tensor) -> bool:
    """Whether reading the module's tensors in this way gives its own forward's result."""
    zeros, order = module.qzeros if used[0] else None, module.g_idx if used[1] else None
    weight = dense_weight(structure, module.qweight, module.scales, zeros, order, torch.float32)
    bias = None if getattr(module, "bias", None) is None else module.bias.float()
    result = nn.functional.linear(x.float(), weight, bias)
    error = (result - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)
    return bool(error < PROBE_TOLERANCE)


def probe(module: Any, k: int) -> Tensor:
    """A few ordinary tokens [4, K] in the dtype of the scales, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, k, generator=generator, dtype=torch.float32, device="cpu").to(module.scales.dtype)


def replace(module: Any, path: str, structure: Structure, used: tuple[bool, bool], note: str) -> None:
    """Give the module the traceable forward; `note` goes into the report."""
    become(module, GroupedLinear, structure, path)
    module.used = used
    if note:
        notes.note(module, note)
