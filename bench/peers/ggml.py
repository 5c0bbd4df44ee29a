"""ggml's mul_mat of a Q4_0 weight, which rounds activations to 8 bit, by the shared libraries inside llama-cpp-python.

The weight lies in ggml's own order for this processor ("repacked"), as llama.cpp would put it.
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

from bench.peers.peer import Peer, copies_of, need_plain
from bench.peers.q4_0 import BLOCK, GROUP, q4_0
from qcompile.meaning import QuantizedWeight

F32, Q4_0 = 0, 2  # enum ggml_type
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

    def repacked(self) -> int:
        """The buffer type that puts weights into the order of this processor, or the plain one."""
        registry = self.backend_cpu_reg()
        address = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)(self.backend_reg_dev_get(registry, 0))
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
    rows: Tensor
    n: int
    k: int
    context: int = field(init=False)
    weight: int = field(init=False)
    buffer: int = field(init=False)

    def __post_init__(self) -> None:
        self.context = self.ggml.room()
        self.weight = self.ggml.new_tensor_2d(self.context, Q4_0, self.k, self.n)
        self.buffer = self.ggml.backend_alloc_ctx_tensors_from_buft(self.context, self.ggml.repacked())
        self.ggml.backend_tensor_set(self.weight, self.rows.data_ptr(), 0, self.rows.numel())

    def __del__(self) -> None:
        self.ggml.backend_buffer_free(self.buffer)
        self.ggml.free(self.context)


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
    need_plain(weight, 4, multiple=GROUP)
    ggml = library()
    ggml.backend_cpu_set_n_threads(ggml.backend, threads)
    rows = q4_0(weight.codes, weight.scales, weight.group)
    n, k = weight.codes.shape
    copies = [Packed(ggml, rows, n, k) for _ in range(copies_of(rows.numel()))]
    calls = [call_of(ggml, at) for at in range(len(copies))]
    size = n * k // GROUP * BLOCK
    return [Peer("ggml Q4_0 (4.5 bit)", calls, size, True, ready=lambda x: Product(ggml, copies, x), pool="ggml")]


def call_of(ggml: Ggml, at: int) -> Callable[[Any], Tensor]:
    def call(product: Product) -> Tensor:
        if ggml.backend_graph_compute(ggml.backend, product.graphs[at]) != 0:
            raise RuntimeError("ggml could not compute the product")
        return product.ys[at]

    return call
