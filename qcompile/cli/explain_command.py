"""`qcompile explain FOLDER`: the decisions for every layer, here or on another platform, without compiling or running a kernel."""

import argparse

from rich.console import Console

from qcompile.api import explain
from qcompile.cli.folder import example_inputs, load_model
from qcompile.cli.options import options_of
from qcompile.targets.registry import settings


def run(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    settings({**options, "platform": arguments.platform})
    with Console(stderr=True).status(f"loading {arguments.folder}"):
        model = load_model(arguments.folder)
    inputs = example_inputs(model, arguments.folder, arguments.prompt)
    with Console(stderr=True).status("looking for quantized linears"):
        found = explain(model, platform=arguments.platform, options=options, **inputs)
    if arguments.json:
        print(found.to_json())
    else:
        found.print(verbose=arguments.verbose)
    return 1 if found.unserved or not found.sites else 0
