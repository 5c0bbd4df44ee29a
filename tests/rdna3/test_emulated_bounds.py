"""No kernel reads or writes outside its arguments, at the smallest and at ragged shapes, even with a broken permutation."""

import os
import subprocess
from pathlib import Path

from support.emulated_rdna3 import build

FIRST_PRODUCTS = 250  # eight paths, six shapes, eight variants, less what the decode paths are too small for


def test_every_path_under_address_sanitizer(tmp_path: Path) -> None:
    flags = (
        "-O1",
        "-g",
        "-march=native",
        "-Wno-clobbered",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-x",
        "c++",
    )
    program = build(tmp_path / "bounds", *flags, str(Path(__file__).with_name("bounds.cpp")))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= FIRST_PRODUCTS
