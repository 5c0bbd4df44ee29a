"""Checkpoint folders on the command line: loading, tokenizers, example inputs, and errors that say what to do."""

import io
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompile.api import load
from qcompile.errors import QCompileError

DEFAULT_PROMPT = "The capital of France is"


class FolderError(QCompileError):
    """A checkpoint folder cannot be used as the command line asks."""


def load_model(folder: Path, **kw: Any) -> Any:
    """qcompile.load(folder), ready for inference; FolderError says what the libraries complained about."""
    try:
        transformers: Any = import_module("transformers")  # here, because it is slow to import, and optional
    except ImportError as error:
        raise FolderError(f"checkpoint folders need transformers ({error}): pip install 'qcompile[transformers]'") from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load(folder, **kw).eval()
    except QCompileError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FolderError(f"{folder} cannot be loaded: {error}") from error


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer, or None if it has none."""
    if not any(
        (folder / name).exists()
        for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
    ):
        return None
    transformers: Any = import_module("transformers")
    with redirect_stderr(io.StringIO()):
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def prompt_ids(folder: Path, prompt: str | None, vocabulary: int) -> tuple[Tensor, Any]:
    """(token ids [1, length], tokenizer or None) of a prompt; without a tokenizer the prompt is ids with spaces, default 1 2 3."""
    tokenizer = tokenizer_of(folder)
    if tokenizer is not None:
        return tokenizer(prompt or DEFAULT_PROMPT, return_tensors="pt")["input_ids"], tokenizer
    words = (prompt or "1 2 3").replace(",", " ").split()
    if not words or not all(word.isdigit() and int(word) < vocabulary for word in words):
        raise FolderError(
            f'--prompt: {folder} has no tokenizer, so the prompt must be token ids below {vocabulary} ("1 2 3"), got {prompt!r}'
        )
    return torch.tensor([[int(word) for word in words]], dtype=torch.int64, device="cpu"), None


def example_inputs(model: Any, folder: Path, prompt: str | None) -> dict[str, Any]:
    """Keyword arguments of one call of `model`, by the kind of its main input."""
    config, main = model.config, str(model.main_input_name)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size, channels = getattr(vision, "image_size", 224), getattr(vision, "num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        return {main: torch.zeros(1, channels, height, width, dtype=dtype, device="cpu")}
    if main == "input_features":
        frames = 2 * getattr(config, "max_source_positions", 1500)
        given: dict[str, Any] = {main: torch.zeros(1, getattr(config, "num_mel_bins", 80), frames, dtype=dtype, device="cpu")}
    elif main == "input_ids":
        given = {main: prompt_ids(folder, prompt, text_config(config).vocab_size)[0]}
    else:
        raise FolderError(
            f"{type(model).__name__} takes {main}, and this command can only make input_ids, pixel_values or input_features"
        )
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = torch.tensor(
            [[getattr(config, "decoder_start_token_id", None) or 0]], dtype=torch.int64, device="cpu"
        )
    return given


def text_config(config: Any) -> Any:
    return getattr(config, "text_config", config)
