"""ONNX Runtime's contributed products: MatMulNBits in float32 and with x rounded to int8, DynamicQuantizeMatMul for 8-bit weights.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.peers.peer import Peer, UnfitError, copies_of, need_plain, unsigned_pairs
from qcompile.meaning import QuantizedWeight

CONTRIBUTED = "com.microsoft"


def peers(weight: QuantizedWeight, threads: int) -> list[Peer]:
    """Their scales are float32."""
    ort: Any = import_module("onnxruntime")
    import_module("onnx")  # which builds the models
    one_pool(threads)
    size = weight.codes.numel() * weight.bits // 8 + weight.scales.numel() * 4
    if weight.bits == 8:
        return [peer_of(ort, "onnxruntime DynamicQuantizeMatMul", dynamic_model(weight), size, rounds=True)]
    need_plain(weight, 4, multiple=16)
    levels = (("onnxruntime MatMulNBits float32", 1), ("onnxruntime MatMulNBits int8", 4))
    return [peer_of(ort, name, nbits_model(weight, level), size, rounds=level == 4) for name, level in levels]


@cache
def one_pool(threads: int) -> None:
    """All sessions share its threads: with a pool each, those of the session before would spin on the cores of the next one."""
    import_module("onnxruntime").set_global_thread_pool_sizes(threads, 1)


def nbits_model(weight: QuantizedWeight, level: int) -> bytes:
    """accuracy_level 1: x in float32 (0, the default, takes the same time here); 4: x in int8."""
    n, k = weight.codes.shape
    codes = unsigned_pairs(weight).reshape(n, k // weight.group, weight.group // 2)
    asked = {"K": k, "N": n, "bits": 4, "block_size": weight.group, "accuracy_level": level}
    return model_of("MatMulNBits", weight, {"codes": codes, "scales": weight.scales.float().flatten()}, asked)


def dynamic_model(weight: QuantizedWeight) -> bytes:
    need_plain(weight, 8)
    if weight.scales.shape[1] != 1:
        raise UnfitError(f"takes one scale per channel for 8 bit, got groups of {weight.group}")
    codes = weight.codes.T.contiguous()
    return model_of("DynamicQuantizeMatMul", weight, {"codes": codes, "scales": weight.scales.float().flatten()}, {})


def model_of(operator: str, weight: QuantizedWeight, tensors: dict[str, Tensor], asked: dict[str, Any]) -> bytes:
    onnx: Any = import_module("onnx")
    n, k = weight.codes.shape
    kind, of = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(operator, ["x", *tensors], ["y"], domain=CONTRIBUTED, **asked)
    stored = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    graph = onnx.helper.make_graph([node], "product", [of("x", kind, ["m", k])], [of("y", kind, ["m", n])], stored)
    versions = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(CONTRIBUTED, 1)]
    raw: bytes = onnx.helper.make_model(graph, opset_imports=versions, ir_version=8).SerializeToString()
    return raw


def peer_of(ort: Any, name: str, model: bytes, size: int, *, rounds: bool) -> Peer:
    settings = ort.SessionOptions()
    settings.use_per_session_threads = False
    sessions = [ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"]) for _ in range(copies_of(size))]

    def ready(x: Tensor) -> tuple[list[Any], Tensor]:
        """x and y in float32, bound to every session."""
        y = torch.empty(len(x), sessions[0].get_outputs()[0].shape[1])
        values = [ort.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in (x.float(), y)]  # which share the memory
        return [bound(session, *values) for session in sessions], y

    calls: list[Callable[[Any], Tensor]] = [partial(run, at, session) for at, session in enumerate(sessions)]
    return Peer(name, calls, size, rounds, ready=ready, pool="onnxruntime")


def bound(session: Any, x: Any, y: Any) -> Any:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return binding


def run(at: int, session: Any, given: tuple[list[Any], Tensor]) -> Tensor:
    bindings, y = given
    session.run_with_iobinding(bindings[at])
    return y
