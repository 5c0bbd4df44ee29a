"""Loads the plug-ins: unexpected skips fail CI, and tests can ask for a fresh compiler; nothing measures the machine."""

import os

pytest_plugins = ["support.skip_gate", "support.fresh_compiler"]

# Decisions in tests follow the built-in estimates: a measurement would make them depend on what else the machine does.
os.environ["QCOMPILE_MEASURE"] = "0"
