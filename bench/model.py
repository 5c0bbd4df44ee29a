"""Times a Llama-shaped model with 4-bit random weights (W4A16, group 128): ours, dense eager, Inductor and zentorch in one run.

Each way runs in its own process with an empty compile cache of its own: load, first prompt and first token (compilation included),
prompts, tokens at a given context, peak memory. The limits of the machine are measured around each run in its own process: a token
cannot take less than reading all weights once, packed; a prompt not less than its products at the peak of bfloat16 (of bytes with
allow_a8). The logits of each way are compared with those of the dense model run eagerly, because a fast wrong model is no result.
With --peers, llama.cpp runs the same codes and scales from a GGUF file; it rounds activations to 8 bit, and its limits are those of
the bytes of its own file and of 8-bit products.

    python bench/model.py --size 1b --out bench-output/model
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `bench` is, beside a qcompile that was installed elsewhere

from bench.gemm import Limits
from bench.model_run import WAYS
from bench.model_times import Run
from demo import schemes
from demo.llama import SIZES, float_model
from qcompile.meaning import sqnr_db

BASE = "dense, eager"
PEERS = {"llama.cpp": "llama.cpp Q4_0"}  # name on the command line: way
NEEDED = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}  # module: what to install
ROUNDED = ("qcompile allow_a8", *PEERS.values())  # activations to 8 bit, in a prompt at least
WIDTH = 150  # of what is written to a file
COLUMNS = (
    "",
    "decode tok/s\nmedian (best)",
    "time / limit\nmedian (best)",
    "prefill tok/s\nmedian (best)",
    "time / limit\nmedian (best)",
    "peak GiB",
    "first prompt,\nfirst token s",
    "logits against\ndense eager",
)


def checkpoint(folder: Path, size: str) -> Path:
    """The quantized checkpoint folder, made in a process of its own if it is not there, so that the dense model is not in ours."""
    path = schemes.folder_of(folder, f"llama-{size}", "w4a16")
    if not (path / "complete").exists():
        subprocess.run([sys.executable, __file__, "--make", str(path), "--size", size], check=True)
    return path


def slug(way: str) -> str:
    """A name for files: Inductor's command lines break at spaces."""
    return way.replace(",", "").replace(" ", "-")


def gguf_of(folder: Path) -> Path:
    """The checkpoint as a GGUF file beside its folder, made in a process of its own if it is not there."""
    path = folder.with_name(f"{folder.name}.q4_0.gguf")
    if not path.exists():
        part = path.with_suffix(".part")
        subprocess.run([sys.executable, "-m", "bench.peers.gguf_file", str(folder), str(part)], check=True)
        part.rename(path)
    return path


def run(folder: Path, way: str, scratch: Path, given: argparse.Namespace) -> Run:
    """One way, measured in its own process; its logits lie in scratch afterwards."""
    foreign = way in PEERS.values()
    asked = {
        **({"file": str(gguf_of(folder))} if foreign else {"folder": str(folder)}),
        "way": way,
        "prompt": given.prompt,
        "context": given.context,
        "tokens": given.tokens,
        "logits": str(scratch / f"{slug(way)}.pt"),
    }
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(given.cache or scratch / slug(way))}
    env["OMP_NUM_THREADS"] = str(given.threads)
    program = ["-m", "bench.peers.llama_cpp"] if foreign else [str(Path(__file__).with_name("model_run.py"))]
    command = [sys.executable, *program, json.dumps(asked)]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"measuring {way} failed:\n{done.stderr[-3000:]}")
    return Run(**json.loads(done.stdout.strip().splitlines()[-1]))


def shown(made: Run, prompt: int, error: str) -> tuple[str, ...]:
    """The cells of one row."""
    limits = Limits(made.read, made.wide, made.octets)
    token = made.weight_bytes / limits.read
    whole = made.operations / (limits.bytes if made.way in ROUNDED else limits.wide)
    decode, prefill = statistics.median(made.decode), statistics.median(made.prefill)
    return (
        made.way,
        f"{1 / decode:.1f} ({1 / min(made.decode):.1f})",
        f"{decode / token:.2f} ({min(made.decode) / token:.2f})",
        f"{prompt / prefill:.0f} ({prompt / min(made.prefill):.0f})",
        f"{prefill / whole:.2f} ({min(made.prefill) / whole:.2f})",
        f"{made.peak_bytes / 2**30:.2f}",
        f"{made.first_prompt_s:.1f}, {made.first_token_s:.1f}",
        error,
    )


def agreement(way: str, scratch: Path) -> str:
    if way == BASE:
        return ""
    wanted, got = (torch.load(scratch / f"{slug(name)}.pt") for name in (BASE, way))
    same = (wanted.argmax(-1) == got.argmax(-1)).float().mean()
    return f"{sqnr_db(wanted, got):.0f} dB, top 1 {float(same):.0%}"


def rich_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="green" if row[0].startswith("qcompile") else None)
    return table


def markdown(rows: list[tuple[str, ...]], facts: str) -> str:
    lines = ["| " + " | ".join(column.replace("\n", " ") for column in COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), "", facts, ""])


def facts_of(runs: list[Run], given: argparse.Namespace) -> str:
    read = [made.read / 1e9 for made in runs]
    wide = [made.wide / 1e9 for made in runs]
    octets = [made.octets / 1e9 for made in runs]
    own = [f", {made.weight_bytes / 1e6:.0f} MB in {made.way}" for made in runs if made.way in PEERS.values()]
    return (
        f"--size {given.size}, prompt {given.prompt}, context {given.context}, {given.tokens} tokens, {runs[0].threads} threads; "
        f"limits measured around each run: {min(read):.1f} to {max(read):.1f} GB/s read, "
        f"{min(wide):.0f} to {max(wide):.0f} GFLOP/s, {min(octets):.0f} to {max(octets):.0f} GOP/s of bytes; "
        f"{runs[0].weight_bytes / 1e6:.0f} MB of weights a token{''.join(own)}; torch {torch.__version__}."
    )


def ways_here(given: argparse.Namespace, console: Console) -> list[str]:
    """What was asked for and can run; the reasons of the others are printed."""
    ways = [way for way in WAYS if way in given.ways or way == BASE]
    if "dense, zentorch" in ways and find_spec("zentorch") is None:
        ways.remove("dense, zentorch")
        console.print("dense, zentorch: zentorch is not installed", style="dim")
    for name in PEERS if given.peers == [] else given.peers or ():
        lacks = [package for module, package in NEEDED.items() if find_spec(module) is None]
        if lacks:
            console.print(f"{name}: not installed: pip install {' '.join(lacks)}", style="dim")
        else:
            ways.append(PEERS[name])
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="the eager one always runs")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), help="other projects (without a name: all)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default 512)")
    parser.add_argument("--context", type=int, default=256, help="tokens before the first decoded one (default 256)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode (default 32)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, help="a compile cache to keep between runs (default: an empty one for each way)")
    parser.add_argument("--checkpoints", type=Path, default=Path("demo-output"), help="where the quantized model is made")
    parser.add_argument("--out", type=Path, help="folder for model.json and model.md")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make is not None:
        schemes.make(given.make, "w4a16", partial(float_model, given.size))
        return
    if given.context > given.prompt:
        parser.error(f"--context {given.context}: at most the prompt's {given.prompt} tokens, which fill it")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    ways = ways_here(given, console)
    folder = checkpoint(given.checkpoints, given.size)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("") as status:
        for way in ways:
            status.update(f"measuring {way}")
            runs.append(run(folder, way, Path(name), given))
        rows = [shown(made, given.prompt, agreement(made.way, Path(name))) for made in runs]
    console.print(rich_table(rows))
    facts = facts_of(runs, given)
    console.print(facts, style="dim", highlight=False)
    for made in runs:
        if made.summary:
            console.print(f"{made.way}: {made.summary}", style="dim", highlight=False)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        asked: dict[str, Any] = {"size": given.size, "prompt": given.prompt, "context": given.context, "tokens": given.tokens}
        (given.out / "model.json").write_text(json.dumps({**asked, "runs": [asdict(made) for made in runs]}, indent=1))
        (given.out / "model.md").write_text(markdown(rows, facts))


if __name__ == "__main__":
    main()
