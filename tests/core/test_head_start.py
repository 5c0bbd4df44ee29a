"""Inductor's slow preparations begin with Dynamo, in a thread that must not import Inductor beside the main thread."""

import subprocess
import sys

import torch

BEGINS = """
import torch
import qcompile.backend
from qcompile import head_start

def look(gm, inputs):
    print("begun" if head_start._worker is not None else "not begun")
    return gm.forward

print("begun" if head_start._worker is not None else "not begun")
torch.compile(lambda x: x + 1, backend=look)(torch.ones(2))
head_start.finish()
from torch._inductor.cpu_vec_isa import valid_vec_isa_list
print("asked", valid_vec_isa_list.cache_info().currsize)
"""

IMPORTS = """
import sys
import torch
import qcompile.backend
from qcompile import head_start
from torch._dynamo.callback import callback_handler

def compilation_starts(_):
    before = set(sys.modules)
    head_start._prepare()
    print("imported:", *sorted(name for name in set(sys.modules) - before if name.startswith(("torch._inductor", "torch._dynamo"))))

callback_handler.clear()
callback_handler.register_start_callback(compilation_starts)
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
"""


def printed(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()


def test_it_begins_when_dynamo_starts_on_a_graph() -> None:
    with_it = ["not begun", "asked 0"] if torch.accelerator.is_available() else ["begun", "asked 1"]
    assert printed(BEGINS) == ["not begun", *with_it]


def test_it_imports_nothing_of_inductor() -> None:
    assert printed(IMPORTS) == ["imported:"]
