"""ggml's mul_mat of a quantized weight, which rounds activations to 8 bit, by the shared libraries inside llama-cpp-python.

The weight lies in ggml's own order for this processor ("repacked") where there is one for its type, as llama.cpp would put it.
https://github.com/ggml-org/ggml/blob/master/include/ggml-backend.h
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers.ggml_blocks import Blocks, blocks_of
from bench.peers.peer import Peer, copies_of
from qcompile.meaning import QuantizedWeight

F32 = 0  # enum ggml_type
GRAPH_BYTES = 1 << 20
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


LOG = ctypes.CFUNCTYPE(None, INT, ctypes.c_char_p, POINTER)
SILENT = LOG(lambda *_: None)  # it would print a line for each weight


class InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool))


SIGNATURES: dict[str, tuple[Any, ...]] = {  # result, arguments
    "ggml_log_set": (None, LOG, POINTER),
    "ggml_init": (POINTER, InitParams),
    "ggml_new_tensor_2d": (POINTER, POINTER, INT, ctypes.c_int64, ctypes.c_int64),
    "ggml_mul_mat": (POINTER, POINTER, POINTER, POINTER),
    "ggml_new_graph": (POINTER, POINTER),
    "ggml_build_forward_expand": (None, POINTER, POINTER),
    "ggml_free": (None, POINTER),
    "ggml_get_data": (POINTER, POINTER),
    "ggml_backend_cpu_init": (POINTER,),
    "ggml_backend_cpu_set_n_threads": (None, POINTER, INT),
    "ggml_backend_cpu_reg": (POINTER,),
    "ggml_backend_reg_dev_get": (POINTER, POINTER, SIZE),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, POINTER, POINTER),
    "ggml_backend_reg_get_proc_address": (POINTER, POINTER, ctypes.c_char_p),
    "ggml_backend_buft_name": (ctypes.c_char_p, POINTER),
    "ggml_backend_cpu_buffer_type": (POINTER,),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, POINTER, POINTER),
    "ggml_backend_buffer_free": (None, POINTER),
    "ggml_backend_tensor_set": (None, POINTER, POINTER, SIZE, SIZE),
    "ggml_backend_graph_compute": (INT, POINTER, POINTER),
}


class Ggml:
    """The functions of the libraries, and one CPU back end with its threads."""

    def __init__(self) -> None:
        found = find_spec("llama_cpp")  # not imported: only the libraries inside are wanted
        if found is None or found.origin is None:
            raise ImportError("No module named 'llama_cpp'")
        folder = Path(found.origin).parent / "lib"
        names = ("libggml-base.so", "libggml-cpu.so")
        libraries = [ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in names]
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(next(library for library in libraries if hasattr(library, name)), name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self.log_set(SILENT, None)
        self.backend = self.backend_cpu_init()

    def __getattr__(self, name: str) -> Any:  # the functions, for type checkers
        raise AttributeError(name)

    @property
    def device(self) -> int:
        return int(self.backend_reg_dev_get(self.backend_cpu_reg(), 0))

    def repacked(self) -> int:
        """The buffer type that puts weights into the order of this processor, or the plain one."""
        address = self.backend_reg_get_proc_address(self.backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts")
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)(self.device)
        at = 0
        while kind := listed[at]:
            if self.backend_buft_name(kind) == b"CPU_REPACK":
                return int(kind)
            at += 1
        return int(self.backend_cpu_buffer_type())

    def room(self, size: int = 4096) -> int:
        """A context for the headers of tensors; their data lie in buffers."""
        return int(self.init(InitParams(size, None, True)))


@cache
def library() -> Ggml:
    return Ggml()


@dataclass(slots=True)
class Packed:
    """One copy of the weight, in a buffer of ggml's."""

    ggml: Ggml
    blocks: Blocks
    n: int
    k: int
    context: int = field(init=False)
    weight: int = field(init=False)
    buffer: int = field(init=False)

    def __post_init__(self) -> None:
        self._place(self.ggml.repacked())
        if not self._is_taken():  # no such order for this type
            self._free()
            self._place(self.ggml.backend_cpu_buffer_type())
        rows = self.blocks.rows
        self.ggml.backend_tensor_set(self.weight, rows.data_ptr(), 0, rows.numel())

    def _place(self, kind: int) -> None:
        """The weight's header, and room for its data in a buffer of that type."""
        self.context = self.ggml.room()
        self.weight = self.ggml.new_tensor_2d(self.context, self.blocks.type, self.k, self.n)
        self.buffer = self.ggml.backend_alloc_ctx_tensors_from_buft(self.context, kind)

    def _is_taken(self) -> bool:
        """Whether ggml multiplies with the weight where it lies."""
        given = self.ggml.new_tensor_2d(self.context, F32, self.k, 1)
        return bool(self.ggml.backend_dev_supports_op(self.ggml.device, self.ggml.mul_mat(self.context, self.weight, given)))

    def _free(self) -> None:
        self.ggml.backend_buffer_free(self.buffer)
        self.ggml.free(self.context)

    def __del__(self) -> None:
        self._free()


class Product:
    """x, y and one graph y = x @ W.T for each copy of the weight."""

    def __init__(self, ggml: Ggml, copies: list[Packed], x: Tensor) -> None:
        self.ggml, self.context = ggml, ggml.room(GRAPH_BYTES * len(copies))
        m, k = x.shape
        n = copies[0].n
        self.graphs: list[int] = []
        given = ggml.new_tensor_2d(self.context, F32, k, m)
        results = [ggml.mul_mat(self.context, copy.weight, given) for copy in copies]
        for result in results:
            self.graphs.append(ggml.new_graph(self.context))
            ggml.build_forward_expand(self.graphs[-1], result)
        self.buffer = ggml.backend_alloc_ctx_tensors_from_buft(self.context, ggml.backend_cpu_buffer_type())
        plain = x.float().contiguous()
        ggml.backend_tensor_set(given, plain.data_ptr(), 0, plain.numel() * 4)
        kind = ctypes.c_float * (m * n)
        self.ys = [torch.frombuffer(kind.from_address(ggml.get_data(y)), dtype=torch.float32).view(m, n) for y in results]

    def __del__(self) -> None:
        self.ggml.backend_buffer_free(self.buffer)
        self.ggml.free(self.context)


def peers(weight: QuantizedWeight, threads: int) -> list[Peer]:
    blocks = blocks_of(weight)
    ggml = library()
    ggml.backend_cpu_set_n_threads(ggml.backend, threads)
    (n, k), size = weight.codes.shape, blocks.rows.numel()
    copies = [Packed(ggml, blocks, n, k) for _ in range(copies_of(size))]
    calls = [call_of(ggml, at, blocks.factor) for at in range(len(copies))]
    name = f"ggml {blocks.name} ({size * 8 / (n * k):.4g} bit)"
    return [Peer(name, calls, size, True, ready=lambda x: Product(ggml, copies, x), pool="ggml")]


def call_of(ggml: Ggml, at: int, factor: float) -> Callable[[Any], Tensor]:
    def call(product: Product) -> Tensor:
        if ggml.backend_graph_compute(ggml.backend, product.graphs[at]) != 0:
            raise RuntimeError("ggml could not compute the product")
        return product.ys[at] if factor == 1.0 else product.ys[at] * factor

    return call
