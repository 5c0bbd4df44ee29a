"""The `qcompile` command: what is this machine, what can it run, what would become of a checkpoint, run it, measure it.

Exit codes: 0 all went well and every quantized linear got a kernel, 1 something failed or has no kernel, 2 wrong usage.
Results go to standard output (with --json nothing else does), progress to standard error.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from qcompile.cli.options import add_options
from qcompile.errors import OptionError, QCompileError, UnknownNameError
from qcompile.torch_internals.dynamo import BackendError

OK, FAILED, USAGE = 0, 1, 2

COMMANDS = {
    "platform": "what was detected on this machine",
    "kernels": "every kernel, and whether it runs here or why not",
    "explain": "which kernel each layer of a checkpoint would get, and why not the others; nothing is compiled or run",
    "run": "generate text with a checkpoint",
    "bench": "latency and memory of a checkpoint against the dense model",
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="qcompile", description="Quantized checkpoints on torch.compile: packed, and explained.", epilog=__doc__
    )
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
    for command in made.values():
        command.add_argument("--json", action="store_true", help="print JSON")
    for name in ("platform", "kernels", "explain"):
        made[name].add_argument("--platform", metavar="NAME", help="look at another platform (`qcompile platform --list`)")
    made["platform"].add_argument("--list", action="store_true", help="list the platforms that --platform knows")
    for name in ("explain", "run", "bench"):
        made[name].add_argument("folder", type=Path, help="checkpoint folder: compressed-tensors, GPTQ, AWQ or NVFP4")
        add_options(made[name])
    for name in ("explain", "run"):
        made[name].add_argument(
            "--prompt", default=None, metavar="TEXT", help='text, or token ids ("1 2 3") if there is no tokenizer'
        )
        made[name].add_argument("--verbose", action="store_true", help="one row for every layer, not for every structure")
    made["run"].add_argument("--tokens", type=_positive, default=64, metavar="N", help="how many tokens to generate (default 64)")
    made["bench"].add_argument(
        "--prompt-tokens", type=_positive, default=128, metavar="N", help="length of the prompt (default 128)"
    )
    made["bench"].add_argument("--tokens", type=_positive, default=16, metavar="N", help="tokens to generate (default 16)")
    made["bench"].add_argument(
        "--against", default="eager,inductor", metavar="LIST", help="dense runs to compare with (default eager,inductor)"
    )
    return top


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser()
    arguments = given.parse_args(argv)

    if getattr(arguments, "folder", None) is not None:
        _check_folder(given, arguments.folder)
    try:
        code: int = import_module(f"qcompile.cli.{arguments.command}_command").run(arguments)
    except BackendError as error:
        # Dynamo wraps what a back end raises; only our own errors are written for the reader of a command line.
        if not isinstance(error.inner_exception, QCompileError):
            raise
        print(f"qcompile: {error.inner_exception}", file=sys.stderr)
        return FAILED
    except (OptionError, UnknownNameError) as error:
        print(f"qcompile: {error}", file=sys.stderr)
        return USAGE
    except QCompileError as error:
        print(f"qcompile: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away, which is no failure; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    return code


def _check_folder(given: argparse.ArgumentParser, folder: Path) -> None:
    if not folder.is_dir():
        given.error(f"{folder} is not a folder")
    if not (folder / "config.json").is_file():
        given.error(f"{folder} has no config.json, so it is no transformers checkpoint")
