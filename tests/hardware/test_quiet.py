"""What a library writes to file descriptor 2 while it is tried out is not shown to the user; what others write is."""

import logging
import os
import sys

import pytest

from qcompile.hardware import libraries
from qcompile.hardware.quiet import without_their_messages

THEIRS = b"[COMMON ][error  ][0.377857]:F16 data type is not supported on this platform (requires AVX512-FP16).\n"


def test_their_lines_go_to_the_debug_log_and_others_come_out(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "qcompile"), without_their_messages():
        os.write(2, THEIRS)
        print("somebody else's", file=sys.__stderr__, flush=True)
        os.write(2, b"no end of a line")
    assert capfd.readouterr().err == "somebody else's\nno end of a line"
    assert [record.getMessage() for record in caplog.records] == [THEIRS.decode().rstrip()]
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_an_exception_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="theirs"), without_their_messages(), without_their_messages():
        os.write(2, THEIRS)
        raise ValueError("theirs")
    os.write(2, b"x")
    assert capfd.readouterr().err == "x"


def test_without_a_standard_error_nothing_changes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> int:
        raise OSError(9, "Bad file descriptor")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", closed)
        with without_their_messages():
            os.write(2, THEIRS)
    assert capfd.readouterr().err.encode() == THEIRS


def test_nothing_that_a_library_writes_at_import_is_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(name: str) -> str:
        os.write(2, b"welcome to a library\n")
        print("and so on", file=sys.__stderr__)
        return name

    monkeypatch.setattr(libraries, "import_module", importing)
    assert libraries.import_quietly("x") == "x" and capfd.readouterr().err == ""
