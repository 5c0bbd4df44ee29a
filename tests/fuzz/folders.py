"""Damaged checkpoint folders: a small model is loaded from one, and either the damage is named or the numbers are right.

`case(seed, folder)` builds a valid folder of one kind (GPTQ, AWQ, compressed-tensors in three formats, a dense one; one file or two with
an index), damages it once or twice, and runs `qcompile.load` and one forward.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import awq_folder, compressed_tensors_folder, float_model, gptq_folder, llama_config, token_ids
from torch import Tensor

import qcompile
from fuzz import Outcome
from qcompile.errors import QCompileError

logging: Any = transformers.utils.logging
logging.disable_progress_bar()
logging.set_verbosity_error()

SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
WEIGHTS = "model.safetensors"
PLACE = TemporaryDirectory(prefix="qcompile-whole-")  # until the process ends
INDEX = "model.safetensors.index.json"


def _dense(folder: Path) -> None:
    float_model(llama_config(**SMALL)).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], Any]] = {
    "gptq": lambda folder: gptq_folder(folder, llama_config(**SMALL)),
    "gptq asymmetric act-order": lambda folder: gptq_folder(folder, llama_config(**SMALL), symmetric=False, act_order=True),
    "awq": lambda folder: awq_folder(folder, llama_config(**SMALL)),
    "pack-quantized": lambda folder: compressed_tensors_folder(folder, llama_config(**SMALL), group=32),
    "pack-quantized asymmetric": lambda folder: compressed_tensors_folder(folder, llama_config(**SMALL), group=32, symmetric=False),
    "int-quantized": lambda folder: compressed_tensors_folder(
        folder, llama_config(**SMALL), bits=8, group=None, activations="static", symmetric_activations=False
    ),
    "nvfp4": lambda folder: compressed_tensors_folder(folder, llama_config(**SMALL), format="nvfp4-pack-quantized"),
    "mxfp4": lambda folder: compressed_tensors_folder(folder, llama_config(**SMALL), format="mxfp4-pack-quantized"),
    "fp8": lambda folder: compressed_tensors_folder(folder, llama_config(**SMALL), format="float-quantized", block=(32, 48)),
    "dense": _dense,
}


@cache
def whole(kind: str) -> tuple[Path, Tensor]:
    """An undamaged folder of that kind, made once a process, and its logits."""
    folder = Path(PLACE.name) / kind
    KINDS[kind](folder)
    return folder, logits(folder)


def logits(folder: Path) -> Tensor:
    model = qcompile.load(folder)
    with torch.no_grad():
        found: Tensor = model(token_ids(model.config)).logits
    return found


class Damage:
    """One folder on its way to being damaged. visible: whether it can be told from what was saved (a changed payload cannot)."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance, self.visible = folder, chance, True

    def file(self) -> Path:
        return self.chance.choice(sorted(self.folder.glob("*.safetensors")))

    def tensors(self, file: Path) -> dict[str, Tensor]:
        return load_file(file)

    def save(self, file: Path, tensors: dict[str, Tensor]) -> None:
        file.unlink()  # it may be mapped
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})

    def pick(self) -> tuple[Path, dict[str, Tensor], str]:
        file = self.file()
        tensors = self.tensors(file)
        return file, tensors, self.chance.choice(sorted(tensors))


def drop(damage: Damage) -> str:
    file, tensors, name = damage.pick()
    del tensors[name]
    damage.save(file, tensors)
    return name


def drop_layer(damage: Damage) -> str:
    file, tensors, name = damage.pick()
    stem = name.rpartition(".")[0]
    damage.save(file, {key: value for key, value in tensors.items() if not key.startswith(f"{stem}.")})
    return stem


def rename(damage: Damage) -> str:
    file, tensors, name = damage.pick()
    stem, _, part = name.rpartition(".")
    others = [f"{stem}.{part}_", f"{stem}x.{part}", name.replace("layers.0", "layers.1"), f"other.{name}", f"{stem}.weight", part]
    to = damage.chance.choice([other for other in others if other not in tensors] or [f"{name}_"])
    tensors[to] = tensors.pop(name)
    damage.save(file, tensors)
    return f"{name} -> {to}"


def copied(damage: Damage) -> str:
    """A second tensor of another name, or the same name in another file."""
    file, tensors, name = damage.pick()
    stem, _, part = name.rpartition(".")
    others = sorted(set(damage.folder.glob("*.safetensors")) - {file})
    if others and damage.chance.random() < 0.5:
        damage.save(others[0], {**damage.tensors(others[0]), name: tensors[name]})
        return f"{name} twice"
    to = damage.chance.choice([f"{stem}.weight", f"{stem}.{part}2", f"x.{name}", f"{stem}.qweight", name.replace("model.", "", 1)])
    if to in tensors:
        to = f"{to}_"
    damage.save(file, {**tensors, to: tensors[name].clone()})
    return f"{name} also {to}"


def reshape(damage: Damage) -> str:
    file, tensors, name = damage.pick()
    tensor = tensors[name]
    ways: list[Callable[[], Tensor]] = [
        tensor.flatten,
        lambda: tensor[None],
        lambda: tensor.t() if tensor.dim() == 2 else tensor[:-1],
        lambda: tensor[: max(tensor.shape[0] // 2, 0)] if tensor.dim() else tensor[None, None],
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor[None, None],
        lambda: tensor[..., :0] if tensor.dim() else tensor[None, None],
    ]
    changed = damage.chance.choice(ways)()
    if changed.shape == tensor.shape:  # the square one, turned over: nobody can tell
        damage.visible = False
    tensors[name] = changed
    damage.save(file, tensors)
    return f"{name} {list(tensor.shape)} -> {list(changed.shape)}"


def cast(damage: Damage) -> str:
    """To another dtype; what only rounds a plain floating point tensor cannot be told."""
    file, tensors, name = damage.pick()
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64]
    to = damage.chance.choice([*dtypes, torch.float8_e4m3fn, torch.bool])
    was = tensors[name].dtype
    wide = tensors[name].to(torch.float32) if was.itemsize == 1 and was.is_floating_point else tensors[name]
    tensors[name] = wide.to(to)
    if was == to or (was.is_floating_point and to in dtypes[:4]) or {was, to} == {torch.int32, torch.int64}:
        damage.visible = False
    damage.save(file, tensors)
    return f"{name} {was} -> {to}"


def swap(damage: Damage) -> str:
    """Two tensors change places; of the same shape and dtype nobody can tell."""
    file, tensors, name = damage.pick()
    other = damage.chance.choice(sorted(tensors))
    first, second = tensors[name], tensors[other]
    if (first.shape, first.dtype) == (second.shape, second.dtype):
        damage.visible = False
    tensors[name], tensors[other] = second, first
    damage.save(file, tensors)
    return f"{name} <-> {other}"


def no_number(damage: Damage) -> str:
    """NaN or infinity in a floating point tensor; in one that is not quantized they may be meant."""
    file, tensors, name = damage.pick()
    floats = [key for key, value in tensors.items() if value.is_floating_point() and value.numel()]
    if not floats:
        return "nothing"
    name = damage.chance.choice(sorted(floats))
    wide = tensors[name].float().flatten()
    wide[damage.chance.randrange(len(wide))] = damage.chance.choice([float("nan"), float("inf"), -float("inf")])
    if not any(part in name for part in ("scale", "scales")):
        damage.visible = False
    tensors[name] = wide.reshape(tensors[name].shape).to(tensors[name].dtype)
    if bool((tensors[name].float().isfinite()).all()):
        damage.visible = False  # a dtype without infinities
    damage.save(file, tensors)
    return f"{name} not finite"


def bad_order(damage: Damage) -> str:
    """g_idx out of range, or no longer the same number of columns for each group."""
    file, tensors, _ = damage.pick()
    names = sorted(name for name in tensors if name.endswith("g_idx"))
    if not names:
        return drop(damage)
    name = damage.chance.choice(names)
    g_idx = tensors[name]
    place = damage.chance.randrange(len(g_idx))
    value = damage.chance.choice([-1, 2, 99, 2**31 - 1, int(g_idx[place]) ^ 1])
    g_idx[place] = value
    damage.save(file, tensors)
    return f"{name}[{place}] = {value}"


def flip(damage: Damage) -> str:
    """Some bits of the file, in the header or in the data (which nobody can tell, but where it makes a scale NaN)."""
    file = damage.file()
    data = bytearray(file.read_bytes())
    header = 8 + struct.unpack("<Q", data[:8])[0]
    inside = damage.chance.random() < 0.7
    for _ in range(damage.chance.choice([1, 1, 2, 8])):
        place = damage.chance.randrange(header) if inside else damage.chance.randrange(header, len(data))
        data[place] ^= 1 << damage.chance.randrange(8)
    file.unlink()
    file.write_bytes(data)
    damage.visible = False  # in the header, too, what is not read may change
    return f"{file.name} {'header' if inside else 'data'} bits"


def cut(damage: Damage) -> str:
    file = damage.file()
    data = file.read_bytes()
    length = damage.chance.choice([0, 4, 8, 100, len(data) // 2, len(data) - 1, len(data) + 8])
    file.unlink()
    file.write_bytes(data[:length] + b"\0" * max(length - len(data), 0))
    return f"{file.name} cut to {length}"


VALUES: list[Any] = [None, 0, -1, 3, 5, 7, 16, 64, 1000, 2**40, 1.5, True, "four", "", [], {}, ["Linear"], {"a": 1}, "re:["]


def config_value(damage: Damage) -> str:
    """A field of config.json's quantization entry (or of the model's sizes) becomes something else, or goes."""
    file = damage.folder / "config.json"
    config = json.loads(file.read_text())
    inside: Any = config
    path: list[str] = []
    if "quantization_config" in config and damage.chance.random() < 0.8:
        inside, path = config["quantization_config"], ["quantization_config"]
        if damage.chance.random() < 0.1:
            config["quantization_config"] = value = damage.chance.choice(VALUES)
            file.write_text(json.dumps(config))
            damage.visible &= value is not None
            return f"quantization_config = {value!r}"
        while damage.chance.random() < 0.8:
            deeper = [key for key, value in inside.items() if isinstance(value, dict) and value]
            if not deeper:
                break
            path.append(damage.chance.choice(deeper))
            inside = inside[path[-1]]
    if not inside:
        return "nothing"
    sizes = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "head_dim",
        "architectures",
    )
    name = damage.chance.choice([key for key in sorted(inside) if path or key in sizes])
    if damage.chance.random() < 0.25:
        value = inside.pop(name)
        text = f"{'.'.join([*path, name])} gone"
    else:
        value = inside[name] = damage.chance.choice(VALUES)
        text = f"{'.'.join([*path, name])} = {value!r}"
    file.write_text(json.dumps(config))
    if not path or (name == "num_bits" and "activations" in path[-1]):
        damage.visible = False  # another model, of which all tensors may be there (heads of another size, inputs rounded otherwise)
    return text


def json_text(damage: Damage) -> str:
    file = damage.chance.choice(sorted(damage.folder.glob("*.json")))
    text = file.read_text()
    ways = ["", "[]", "null", "{", text[: len(text) // 2], text.replace(":", "", 1), "\0" + text]
    file.write_text(damage.chance.choice(ways))
    damage.visible &= file.name in {"config.json", INDEX}
    return f"{file.name} is no JSON"


def index_entry(damage: Damage) -> str:
    """The index names another file or tensor, or has lost something."""
    file = damage.folder / INDEX
    if not file.exists():
        return cut(damage)
    index = json.loads(file.read_text())
    places: dict[str, Any] = index["weight_map"]
    name = damage.chance.choice(sorted(places))
    way = damage.chance.randrange(6)
    if way == 0:
        places[name] = damage.chance.choice(["absent.safetensors", "../x", 5, None, "model-00002-of-00002.safetensors"])
    elif way == 1:
        places[f"{name}_"] = places.pop(name)
    elif way == 2:
        del places[name]
    elif way == 3:
        index["weight_map"] = damage.chance.choice([{}, [], None, 3])
    elif way == 4:
        del index["metadata"]
    else:
        (damage.folder / str(places[name])).unlink(missing_ok=True)
    file.write_text(json.dumps(index))
    damage.visible = False  # the same file may have been named
    return f"index: way {way}, {name}"


DAMAGES = (
    *(drop, drop_layer, rename, copied, reshape, cast, swap, no_number, bad_order, flip, cut),
    *(config_value, config_value, config_value, json_text, index_entry),
)


def split(folder: Path) -> None:
    """Distribute the folder's tensors over two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places: dict[str, str] = {}
    for number in range(2):
        name = f"model-{number + 1:05d}-of-00002.safetensors"
        part = {key: tensors[key].clone() for key in sorted(tensors)[number::2]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def case(seed: int, folder: Path) -> Outcome:
    """One damaged folder in `folder` (empty, or not there)."""
    chance = random.Random(seed)
    kind = chance.choice(sorted(KINDS))
    source, expected = whole(kind)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if chance.random() < 0.4:
        split(folder)
    damage = Damage(folder, chance)
    said: list[str] = []
    for _ in range(chance.choice([1, 1, 1, 2])):
        way = chance.choice(DAMAGES)
        try:
            said.append(f"{way.__name__}: {way(damage)}")
        except Exception as error:  # the first damage may leave nothing for the second
            said.append(f"{way.__name__}: nothing ({type(error).__name__})")
            if not said[:-1]:
                raise
    story = f"{kind}; {'; '.join(said)}"
    try:
        found = logits(folder)
    except QCompileError as error:
        return (
            Outcome("clear error", str(error))
            if _names_something(str(error), folder)
            else Outcome("unclear error", f"{story}: {error}")
        )
    except Exception as error:
        return Outcome("unclear error", f"{story}: {type(error).__name__}: {error}")
    if found.shape == expected.shape and bool(((found - expected).abs() <= 1e-3).all()):
        return Outcome("right", story)
    return Outcome("silent", f"{story}: other numbers") if damage.visible else Outcome("right", f"{story}: cannot be told")


def _names_something(message: str, folder: Path) -> bool:
    """Whether the message names a file, a tensor or a field, and has no text of Python's own errors alone."""
    return str(folder) in message or "model.layers" in message or "quantization_config" in message
