"""OpenVINO's MatMul with a compressed 4-bit constant, in bfloat16 and with activations rounded in groups (dynamic quantization).

https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/weight-compression.html
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.peers.peer import Peer, copies_of, need_plain, unsigned_pairs
from qcompile.meaning import QuantizedWeight


def peers(weight: QuantizedWeight, threads: int) -> list[Peer]:
    ov: Any = import_module("openvino")
    need_plain(weight, 4, multiple=2)
    size = weight.codes.numel() // 2 + weight.scales.numel() * 2
    made = []
    for name, group in (("openvino bf16", 0), (f"openvino dynamic g{weight.group}", weight.group)):
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "ENABLE_CPU_PINNING": "NO",  # as torch's threads, so that they move away from other work alike
        }
        core = ov.Core()
        requests = [
            core.compile_model(model_of(ov, weight), "CPU", settings).create_infer_request() for _ in range(copies_of(size))
        ]
        calls = [call_of(request) for request in requests]
        made.append(Peer(name, calls, size, group > 0, ready=ready_for(ov, requests), pool="openvino"))
    return made


def model_of(ov: Any, weight: QuantizedWeight) -> Any:
    """y = x @ ((u4 - 8) * scale).T, x and y in bfloat16: the plug-in folds the conversions into its product."""
    op: Any = import_module("openvino.opset13")
    n, k = weight.codes.shape
    groups = k // weight.group
    pairs, zero = unsigned_pairs(weight).flatten().numpy(), torch.tensor([8], dtype=torch.uint8).numpy()
    # These tensors only point to what they are made of, which has to live until the constants have copied it.
    codes = ov.Tensor(pairs, ov.Shape([n, groups, weight.group]), ov.Type.u4)
    eight = ov.Tensor(zero, ov.Shape([1, 1, 1]), ov.Type.u4)
    scales = op.constant(weight.scales.to(torch.float16).reshape(n, groups, 1).numpy())
    shifted = op.subtract(*(op.convert(op.constant(tensor, shared_memory=False), "f16") for tensor in (codes, eight)))
    shape = op.constant(torch.tensor([n, k]).numpy())
    dense = op.convert(op.reshape(op.multiply(shifted, scales), shape, False), "f32")
    x = op.parameter(ov.PartialShape([-1, k]), ov.Type.bf16)
    y = op.matmul(op.convert(x, "f32"), dense, False, True)
    return ov.Model([op.convert(y, "bf16")], [x])


def ready_for(ov: Any, requests: list[Any]) -> Callable[[Tensor], None]:
    """Hands x to every request, which keeps it, and lets it prepare for this shape: its first call takes 80 ms."""

    def ready(x: Tensor) -> None:
        shared = ov.Tensor(x.view(torch.int16).numpy(), ov.Shape(list(x.shape)), ov.Type.bf16)
        for request in requests:
            request.set_input_tensor(shared)
            request.infer()

    return ready


def call_of(request: Any) -> Callable[[Any], Tensor]:
    def call(_: Any) -> Tensor:
        request.infer()
        y = request.get_output_tensor(0)
        return torch.frombuffer(y.data, dtype=torch.bfloat16).view(*y.shape)

    return call
