"""`python -m demo`: sentence similarities with MiniLM, then a Llama-shaped model that generates; prints what runs where and why."""

import argparse
import os
from pathlib import Path

# Before the libraries are imported: their own progress bars would run into ours, and nothing here needs the network.
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from rich.rule import Rule

from demo import llama, sentences
from demo.screen import CONSOLE, closing
from qcompile.hardware import platform, summary


def main() -> None:
    """Parse the command line and run the parts."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--size", choices=tuple(llama.SIZES), default="small", help="size of the Llama-shaped model (default small)"
    )
    parser.add_argument("--only", choices=("minilm", "llama"), help="run one part")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for checkpoints (default demo-output)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to generate (default 48)")
    parser.add_argument("--no-bench", action="store_true", help="skip latency and memory, which run each way in its own process")
    given = parser.parse_args()
    CONSOLE.print(Rule("qcompile: quantized models, packed, through torch.compile"))
    CONSOLE.print(summary(platform()), style="dim", highlight=False)
    bench = not given.no_bench
    if given.only != "llama":
        sentences.run(given.output, bench)
    if given.only != "minilm":
        llama.run(given.output, given.size, given.tokens, bench)
    closing(given.output)


if __name__ == "__main__":
    main()
