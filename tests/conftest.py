"""Loads the plug-in that lets CI fail when a test is skipped for a reason that CI does not expect; nothing measures the machine."""

import os

pytest_plugins = ["support.skip_gate"]

# Decisions in tests follow the built-in estimates: a measurement would make them depend on what else the machine does.
os.environ["QCOMPILE_MEASURE"] = "0"
