"""Back end options given on the command line."""

import argparse
from typing import Any

NAMES = ("kernels", "disable", "fallback", "verify", "rest", "allow_a8", "release", "dump")


def add_options(command: argparse.ArgumentParser) -> None:
    """The fields of qcompile.Options that make sense on a command line."""
    group = command.add_argument_group("back end options (as in torch.compile's options)")
    group.add_argument("--kernels", metavar="A,B", help="only these kernels or targets, in this order")
    group.add_argument("--disable", metavar="A,B", help="kernels or targets that must not be used")
    group.add_argument("--fallback", metavar="WHAT", help="weights without a kernel: dense (default), packed, error")
    group.add_argument("--verify", metavar="HOW", help="check kernels by value: structure (default), every, off")
    group.add_argument("--rest", metavar="WHO", help="who compiles the rest: inductor (default), eager")
    group.add_argument(
        "--allow-a8", action="store_true", default=None, help="permit int8 activations the checkpoint does not ask for"
    )
    group.add_argument("--release", action="store_true", default=None, help="free the raw weights once they are packed")
    group.add_argument("--dump", metavar="FOLDER", help="write graphs, decisions and a drawing there")


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by their names in qcompile.Options."""
    return {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name, None) is not None}
