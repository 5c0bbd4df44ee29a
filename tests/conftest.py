"""Loads the plug-in that lets CI fail when a test is skipped for a reason that CI does not expect."""

pytest_plugins = ["support.skip_gate"]
