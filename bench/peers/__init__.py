"""Other projects' products of a quantized weight, for bench/gemm.py; a library that is not installed is a printed line.

Each module makes the peers of one library: `peers(weight, threads) -> list[Peer]`. It imports the library when that is called.
"""

from collections.abc import Iterator
from importlib import import_module

from bench.peers.peer import Peer, UnfitError
from qcompile.meaning import QuantizedWeight

# Name on the command line, which is that of the module: what to install.
LIBRARIES = {"openvino": "openvino", "onnxruntime": "onnxruntime onnx", "ggml": "llama-cpp-python"}


def peers_of(weight: QuantizedWeight, names: list[str], threads: int) -> Iterator[Peer]:
    """The peers of all libraries that are here and take the weight; reasons of the others are printed."""
    for name in names:
        try:
            yield from import_module(f"bench.peers.{name}").peers(weight, threads)
        except (ImportError, OSError) as error:
            print(f"  {name}: {error}: pip install {LIBRARIES[name]}")
        except UnfitError as error:
            print(f"  {name}: {error}")
