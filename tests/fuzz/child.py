"""`python -m fuzz.child MODULE FIRST STEP FOLDER`: every STEP-th case for ever, each announced and answered on a line of JSON."""

import importlib
import json
import os
import shutil
import sys
import traceback
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fuzz import Outcome


def answer(generator: Any, seed: int, folder: Path) -> Outcome:
    """The outcome of one seed; an exception of the generator's own counts as a crash, too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        outcome: Outcome = generator.case(seed, folder)
    except Exception:
        return Outcome("crash", traceback.format_exc(limit=-8))
    return outcome


def main(name: str, first: int, step: int, folder: Path) -> None:
    torch.set_num_threads(1)
    generator = importlib.import_module(name)
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints does not get between the lines
    for seed in count(first, step):
        print(json.dumps({"begins": seed}), file=lines)
        outcome = answer(generator, seed, folder)
        print(json.dumps({"kind": outcome.kind, "detail": outcome.detail, "cases": outcome.cases}), file=lines)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
