"""Loads a quantized folder into a transformers model without the quantization libraries, with transformers and safetensors only.

transformers does the reading (shards, renamed keys, tied weights, buffers such as rotary frequencies, generation config), tensor by
tensor into place. Which layers are quantized, and with which tensors, is taken from the headers of the files, not guessed from the
config; the config gives the scheme (activations, group sizes).
"""

from os import PathLike
from typing import Any

import torch
import transformers

from qcompile.errors import UnsupportedSchemeError
from qcompile.frontends.checkpoint_schemes import METHODS, known_methods, legacy_entry
from qcompile.frontends.hf_quantizer import METHOD, register


def load(path: str | PathLike[str], *, model_class: Any = None, dtype: Any = "auto", **kw: Any) -> Any:
    """The model in the folder (or Hub repository) `path`, in eval mode, its quantized layers packed and ready for torch.compile.

    model_class: the transformers class; by default the one that config.json names under `architectures`. dtype: of everything that
    is not quantized, by default what config.json says; scales keep the file's own dtype. kw goes to `from_pretrained` (not
    `quantization_config` or `device_map`). A folder that is not quantized loads as it is. Raises UnsupportedSchemeError for a
    quantization method or scheme that is not known, WeightError for contradictory tensors; both name the layer.
    """
    register()
    name = str(path)
    config: Any = kw.pop("config", None) or transformers.AutoConfig.from_pretrained(name)
    entry = legacy_entry(config)
    model_class = model_class or class_of(config)
    if entry is None:
        model: Any = model_class.from_pretrained(name, config=config, dtype=dtype, **kw)
        return model.eval()
    method = str(entry.get("quant_method", ""))
    if method not in METHODS:
        way_out = f"Load it with {model_class.__name__}.from_pretrained and qcompile.compile the result."
        raise UnsupportedSchemeError(name, f"quant_method {method!r}", known_methods(), way_out)
    config.quantization_config = {"quant_method": METHOD, "entry": entry}
    with torch.no_grad():
        model = model_class.from_pretrained(name, config=config, dtype=dtype, **kw)
    return model.eval()


def class_of(config: Any) -> Any:
    """The transformers class that the config's `architectures` names; AutoModel if it names none that exists."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if found is not None:
            return found
    return transformers.AutoModel
