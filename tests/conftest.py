"""Loads the plug-ins: unexpected skips fail CI, tests have seeds and can ask for a fresh compiler; nothing measures the machine."""

import os

pytest_plugins = ["support.skip_gate", "support.fresh_compiler", "support.longest_first", "support.seeds"]

# Decisions in tests follow the built-in estimates: a measurement would make them depend on what else the machine does.
os.environ["QCOMPILE_MEASURE"] = "0"
# Of several processes that share the processors (pytest -n) each has one: threads that wait for each other's take most of the time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
