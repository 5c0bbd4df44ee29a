"""Asymmetric pack-quantized checkpoints: why transformers cannot load them, and two ways round it.

The cause, in compressed-tensors 0.20: before loading, transformers has the library "compress" the model on the meta device, so
that every module has parameters of the checkpoint's shapes. In that branch `PackedQuantizationCompressor.compress` gives
`weight_packed` and `weight_shape` their shapes but returns before it packs the zero points, so `weight_zero_point` keeps its
uncompressed shape, int8 [N, G], where the file holds int32 [ceil(N * bits / 32), G]. transformers 5.23 then refuses the file
("Reinit due to size mismatch"), or, with ignore_mismatched_sizes=True, goes on with zero points that are not the file's: wrong
numbers without a word.

The ways round it: `qcompile.load(folder)` does not use that code at all; `loading_asymmetric` mends the shape while
`from_pretrained` runs; and a model that was loaded with ignore_mismatched_sizes=True gets the file's zero points back in `prepare`.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.errors import LostWeightError


@contextmanager
def loading_asymmetric() -> Generator[None]:
    """While active, `from_pretrained` accepts asymmetric pack-quantized checkpoints; the library is left as it was afterwards."""
    compressor: Any = import_module("compressed_tensors.compressors.pack_quantized").PackedQuantizationCompressor
    original = compressor.__dict__["compress"]

    def compress(cls: Any, state_dict: dict[str, Tensor], scheme: Any) -> dict[str, Tensor]:
        result: dict[str, Tensor] = original.__func__(cls, state_dict, scheme)
        found = result.get("weight_zero_point")
        args = scheme.weights
        on_meta = result["weight_packed"].device.type == "meta"
        if on_meta and found is not None and found.dtype != torch.int32 and str(args.strategy) in {"group", "channel"}:
            rows = math.ceil(result["weight_packed"].shape[0] * args.num_bits / 32)
            result["weight_zero_point"] = torch.empty((rows, found.shape[-1]), dtype=torch.int32, device="meta")
        return result

    compressor.compress = classmethod(compress)
    try:
        yield
    finally:
        compressor.compress = original


def restored_zero_point(model: nn.Module, path: str, shape: tuple[int, int]) -> Tensor:
    """The file's zero points (int32, packed) of the module at `path`; LostWeightError if the model's folder is not at hand."""
    config: Any = getattr(model, "config", None)
    folder = Path(str(getattr(config, "_name_or_path", "") or ""))
    name = f"{path}.weight_zero_point"
    prefix = str(getattr(model, "base_model_prefix", ""))
    names = {name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")}
    found = _from_folder(folder, names) if folder.is_dir() else None
    if found is None or found.dtype != torch.int32 or tuple(found.shape) != shape:
        raise LostWeightError(
            name,
            f"packed zero points, int32 {list(shape)}",
            "unpacked ones, which loading made up because the shapes in the file did not fit. Use qcompile.load(folder)",
        )
    return found


def _from_folder(folder: Path, names: set[str]) -> Tensor | None:
    open_file: Any = import_module("safetensors").safe_open
    for file in sorted(folder.glob("*.safetensors")):
        with open_file(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - the reader is no dictionary
                if key in names:
                    found: Tensor = tensors.get_tensor(key)
                    return found
    return None
