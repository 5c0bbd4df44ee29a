"""Loads a quantized folder into a transformers model without the quantization libraries, with transformers and safetensors only.

transformers does the reading (shards, renamed keys, tied weights, buffers such as rotary frequencies, generation config), tensor by
tensor into place. Which layers are quantized, and with which tensors, is taken from the headers of the files, not guessed from the
config; the config gives the scheme (activations, group sizes), and both must agree with each other and with the model.
"""

import copy
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from qcompile.errors import (
    CACHE_SCHEME_WARNING,
    CONFIG_WAY_OUT,
    DAMAGED,
    NEEDED_VERSION,
    CheckpointError,
    QCompileError,
    UnsupportedVersionError,
)
from qcompile.frontends.checkpoint_entry import checked
from qcompile.frontends.checkpoint_schemes import legacy_entry
from qcompile.frontends.folder import Headers, config_entry, headers, weight_files
from qcompile.frontends.session import Session, loading
from qcompile.versions import TRIED
from qcompile.warning import warn

# No model has so many layers that share their tensors.
_DEEP = 1000


def load(path: str | PathLike[str], *, model_class: Any = None, dtype: Any = "auto", **kw: Any) -> Any:
    """The model in the folder (or Hub repository) `path`, in eval mode, its quantized layers packed and ready for torch.compile.

    model_class: the transformers class; by default the one that config.json names under `architectures`. dtype: of everything that
    is not quantized, by default what config.json says; scales keep the file's own dtype. kw goes to `from_pretrained` (not
    `quantization_config` or `device_map`). A folder that is not quantized loads as it is; a layer of a scheme that is not known is
    made dense by compressed-tensors, and the report says so. Raises CheckpointError (a WeightError), which names file and tensor,
    for files that cannot be read or contradict each other, config.json or the model; UnsupportedSchemeError for a quantization
    method that is not known; UnsupportedVersionError without a transformers that can do this.
    """
    transformers = _transformers()
    name = str(path)
    folder = _local(path, kw)
    raw = config_entry(folder) if folder is not None and "config" not in kw else None
    config = copy.deepcopy(kw.pop("config", None)) or _config(transformers, name, folder, kw)
    chosen = model_class is not None
    model_class = model_class or class_of(config, name)
    session = Session(name, _checked_entry(name, config, raw, model_class), chosen)
    if folder is not None:
        session.headers = _headers(folder, kw, session.entry is not None)
        if session.headers:
            _need_possible_depth(f"{name}/config.json", config, session.headers)
    options = {"config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True, **kw}
    if session.entry is not None:
        if session.entry.get("kv_cache_scheme"):
            warn(CACHE_SCHEME_WARNING.format(file=name))
        quantizer = import_module("qcompile.frontends.hf_quantizer")
        quantizer.register()
        config.quantization_config = {"quant_method": quantizer.METHOD, "entry": session.entry}
    with torch.no_grad(), loading(session):
        model, info = _read(model_class, name, options, session, folder is not None)
    if session.entry is None and session.headers:
        import_module("qcompile.frontends.completeness").need_dense(model, session)
    _need_complete(model, info, session)
    return (model, info) if kw.get("output_loading_info") else model.eval()


def _transformers() -> Any:
    """transformers, with the piece of ours that plugs into it; what fails with another release, the caller blames on that."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        wanted = ">={}.{}".format(*TRIED["transformers"][0])
        sentence = NEEDED_VERSION.format(what="qcompile.load", library="transformers", wanted=wanted, found=f"none ({error})")
        raise UnsupportedVersionError(sentence) from error
    import_module("qcompile.frontends.hf_quantizer")
    return transformers


def _local(path: str | PathLike[str], kw: Mapping[str, Any]) -> Path | None:
    """The folder on this machine, None for a name on the Hub."""
    folder = Path(path)
    return folder / str(kw.get("subfolder") or "") if folder.is_dir() else None


def _config(transformers: Any, name: str, folder: Path | None, kw: Mapping[str, Any]) -> Any:
    given = {key: kw[key] for key in ("revision", "subfolder", "cache_dir", "token", "local_files_only") if key in kw}
    given |= {key: kw[key] for key in ("trust_remote_code",) if key in kw}
    try:
        return transformers.AutoConfig.from_pretrained(name, **given)
    except Exception as error:
        if folder is None:
            raise
        raise CheckpointError(str(folder / "config.json"), "", "a model's configuration", _words(error), CONFIG_WAY_OUT) from error


def _checked_entry(name: str, config: Any, raw: object, model_class: Any) -> dict[str, Any] | None:
    found = raw if raw is not None else legacy_entry(config)
    if found is None:
        return None
    way_out = f"Load it with {model_class.__name__}.from_pretrained and qcompile.compile the result."
    return checked(f"{name}/config.json", found, way_out)


def _need_possible_depth(file: str, config: Any, stored: Headers) -> None:
    """CheckpointError for a number of layers that the files cannot hold: building them would take all memory."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(depth, int) and depth > max(_DEEP, len(stored)):
        expected = f"at most one layer for each of the {len(stored)} tensors of the files"
        raise CheckpointError(file, "num_hidden_layers", expected, str(depth), CONFIG_WAY_OUT)


def _headers(folder: Path, kw: Mapping[str, Any], quantized: bool) -> Headers:
    files = weight_files(folder, kw.get("variant"))
    if files is None and quantized:
        raise CheckpointError(str(folder), "", "model.safetensors or model.safetensors.index.json", "neither")
    return headers(files or ())


def _read(model_class: Any, name: str, options: dict[str, Any], session: Session, local: bool) -> tuple[Any, Any]:
    try:
        found: tuple[Any, Any] = model_class.from_pretrained(name, **options)
        return found
    except QCompileError:
        raise
    except Exception as error:
        if session.problem is not None:
            raise session.problem from error
        if not local:
            raise
        if _cannot_be_built(model_class, options["config"]):
            file, expected = f"{name}/config.json", f"values from which a {model_class.__name__} can be made"
            raise CheckpointError(file, "", expected, _words(error), CONFIG_WAY_OUT) from error
        raise CheckpointError(name, "", "files from which the model can be loaded", _words(error), DAMAGED) from error


def _cannot_be_built(model_class: Any, config: Any) -> bool:
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            model_class(config)
    except Exception:  # a class says in its own words what it does not like
        return True
    return False


def _need_complete(model: Any, info: Mapping[str, Any], session: Session) -> None:
    """What transformers says about keys, and what became of the tensors: everything is there, and nothing was made up."""
    mismatched: list[tuple[str, Any, Any]] = sorted(info.get("mismatched_keys") or [], key=str)
    for key, found, wanted in mismatched:
        raise CheckpointError(session.file_of(key), key, str(list(wanted)), str(list(found)))
    for key in sorted(info.get("missing_keys") or ()):
        raise CheckpointError(session.file_of(key), key, "a tensor of that name", "nothing")
    surplus = [key for key in sorted(info.get("unexpected_keys") or ()) if not _harmless(model, session, key)]
    for key in surplus:
        raise CheckpointError(session.file_of(key), key, f"a tensor that {type(model).__name__} has", "another one")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(session.file_of(key), key, "values", "none")


def _harmless(model: Any, session: Session, key: str) -> bool:
    found: bool = import_module("qcompile.frontends.completeness").harmless(model, session, key, key)
    return found


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:3])}"[:300]


def class_of(config: Any, name: str) -> Any:
    """The transformers class that the config's `architectures` names; AutoModel if it names none that exists.

    Raises CheckpointError if that entry is no list of names: AutoModel would leave the head out without a word.
    """
    transformers: Any = import_module("transformers")
    given = getattr(config, "architectures", None) or []
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        raise CheckpointError(f"{name}/config.json", "architectures", "a list of class names", repr(given), CONFIG_WAY_OUT)
    for item in given:
        found = getattr(transformers, item, None)
        if found is not None:
            return found
    return transformers.AutoModel
