"""pytest plug-in: with CI set, a skip whose reason names no absent hardware fails the run."""

import os
import re
from typing import cast

import pytest

# What a test may lack, or have, anywhere. A reason has to name it.
HARDWARE = re.compile(
    r"\b(GPU|CUDA|ROCm|XPU|the card|gfx\d+|AMX\w*|AVX[-\w]*|VNNI|bf16 instructions|aarch64|Arm|processor|this (operating )?system)\b",
    re.IGNORECASE,
)
# What CI installs, so that a skip for want of it is a mistake; zentorch only where a release of it runs.
INSTALLED = re.compile(
    r"\b(transformers|compressed.tensors|clang|compiler|built (without|before)|compiled kernels|MiniLM|tlparse)\b", re.IGNORECASE
)
ZENTORCH = re.compile(r"\bzentorch\b", re.IGNORECASE)


def expects_zentorch() -> bool:
    """Whether `make` installs zentorch on this machine: a release is built for its torch and runs on its processor."""
    from qcompile.hardware import libraries, platform  # noqa: PLC0415 - most runs skip nothing

    return bool(libraries.zentorch_release(platform()))


def unexpected(reason: str, zentorch_runs: bool) -> bool:
    """Whether CI should fail when a test is skipped for `reason`."""
    if INSTALLED.search(reason):
        return True
    if ZENTORCH.search(reason):
        return zentorch_runs
    return HARDWARE.search(reason) is None


class SkipGate:
    """Collects the reasons of skipped tests; turns the exit status when CI does not expect one of them."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def _note(self, name: str, longrepr: object) -> None:
        # A skip's longrepr is (file, line, reason).
        reason = cast("tuple[str, int, str]", longrepr)[2] if isinstance(longrepr, tuple) else str(longrepr)
        if unexpected(reason, expects_zentorch()):
            self.wrong.append(f"{name}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.wrong and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.wrong:
            terminalreporter.section("skips that CI does not expect")
            for line in self.wrong:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        config.pluginmanager.register(SkipGate(), "skip_gate")
