"""Inductor's slow preparations begin for graphs that are ours alone, in a thread that does not import Inductor beside the main one."""

import subprocess
import sys

FOREIGN = """
import threading
import torch
from torch._dynamo.callback import callback_handler
import qcompile
from qcompile.torch_internals import warm_up

threads = set(threading.enumerate())
torch.compile(lambda x: x + 1, backend=lambda gm, inputs: gm.forward)(torch.ones(2))
torch.compile(lambda x: x + 2, backend="eager")(torch.ones(2))
print("callbacks", len(callback_handler.start_callbacks) + len(callback_handler.end_callbacks))
print("threads", len(set(threading.enumerate()) - threads), warm_up._worker)
qcompile.explain(torch.nn.Linear(2, 2), torch.ones(1, 2))
qcompile.compile(torch.nn.Linear(2, 2), rest="eager")(torch.ones(1, 2))
qcompile.compile(torch.nn.Linear(2, 2, device="meta"))
print("not for others", warm_up._worker)
"""

OURS = """
import sys
import torch
import qcompile
from qcompile.torch_internals import warm_up

if sys.argv[1] == "compile":
    qcompile.compile(torch.nn.Linear(2, 2))
else:
    class Seen(Exception):
        pass
    def begin():
        raise Seen
    prepare, warm_up.begin = warm_up.begin, begin
    try:
        with torch.no_grad():
            torch.compile(torch.nn.Linear(2, 2), backend="qcompile")(torch.ones(1, 2))
    except Exception as error:
        assert "Seen" in repr(error) or isinstance(error.__cause__, Seen)
    warm_up.begin = prepare
    warm_up.begin()
worker = warm_up._worker
warm_up.begin()
warm_up.finish()
from torch._inductor.cpu_vec_isa import valid_vec_isa_list
print("asked", valid_vec_isa_list.cache_info().currsize, warm_up._worker is worker)
"""

IMPORTS = """
import importlib
import sys
import torch
import qcompile
from qcompile.torch_internals import warm_up

importlib.import_module("torch._inductor.compile_fx")
before = set(sys.modules)
warm_up._prepare()
print("imported:", *sorted(name for name in set(sys.modules) - before if name.startswith(("torch._inductor", "torch._dynamo"))))
"""


def printed(script: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()


def test_nothing_is_registered_and_nothing_begins_for_graphs_that_are_not_ours() -> None:
    assert printed(FOREIGN) == ["callbacks 0", "threads 0 None", "not for others None"]


def test_it_begins_with_a_model_that_is_given_to_us() -> None:
    assert printed(OURS, "compile") == ["asked 1 True"]


def test_it_begins_with_a_graph_that_goes_to_inductor() -> None:
    assert printed(OURS, "graph") == ["asked 1 True"]


def test_it_imports_nothing_of_inductor() -> None:
    assert printed(IMPORTS) == ["imported:"]
