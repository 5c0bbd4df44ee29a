"""Prints the analysis in docs/rdna3.md: what the gfx1100 code of gptq_gemm_rdna3 issues, occupies and moves.

Counts come from the assembly that clang makes of csrc/rocm (no ROCm and no card needed), choices from the library's own
model (csrc/rocm/dispatch.cpp). Run from the repository: `python bench/rdna3_model.py`; `--write` puts the tables into the docs.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Iterator
from math import ceil, floor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.emulated_rdna3 import Emulator, build  # noqa: E402 - the tests' folder is not installed
from support.gfx1100 import CompiledKernel, assembled  # noqa: E402

DOCS = ROOT / "docs/rdna3.md"
COMPUTE_UNITS, SIMDS_PER_UNIT, CLOCK, BANDWIDTH = 96, 2, 2.5e9, 960e9
REGISTERS, PORTION, MOST_WAVES, LDS_PER_PROCESSOR = 1536, 24, 16, 131072
SHAPES = ((4096, 4096), (4096, 11008))  # K, N
ROWS = (1, 16, 128)
GROUP = 128
WEIGHTS_PER_STEP = {"decode": 32 * 4 * 32, "prefill": 32 * 64}  # of a wave: 32 lanes with 32 x 4, or 32 x 64 together
TILES = {"prefill_16x64": 1, "prefill_32x64": 2, "prefill_64x128": 4, "prefill_128x128": 4}
THREADS = {"prefill_64x128": 128, "prefill_128x128": 128}
TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}


def kernel_name(path: str, dtype: str) -> str:
    kind, _, rest = path.partition("_")
    return f"qcompile_rdna3_{kind}_{dtype}_{rest}"


def waves_per_simd(kernel: CompiledKernel, threads: int) -> int:
    """Waves that fit a SIMD: by registers and by LDS (a work-group processor has four SIMDs)."""
    by_registers = min(MOST_WAVES, REGISTERS // (ceil(kernel.figures["vgpr_count"] / PORTION) * PORTION))
    lds = kernel.figures["group_segment_fixed_size"]
    by_lds = floor(LDS_PER_PROCESSOR / lds) * (threads // 32) // 4 if lds else MOST_WAVES
    return min(by_registers, by_lds)


def kernel_rows(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    yield (
        "kernel",
        "VGPRs",
        "LDS",
        "waves per SIMD",
        "VALU",
        "dual",
        "WMMA",
        "LDS instr.",
        "memory",
        "cycles",
        "VALU per weight",
        "WMMA share",
    )
    for path in paths:
        for dtype in TORCH:
            kernel = assembled()[kernel_name(path, dtype)]
            loop = kernel.loop()
            issued = loop.counts["vector"] + loop.counts["dual"]
            weights = WEIGHTS_PER_STEP[path.split("_")[0]] / 32
            yield (
                f"{path} {dtype}",
                str(kernel.figures["vgpr_count"]),
                f"{kernel.figures['group_segment_fixed_size'] / 1024:.1f} KiB",
                str(waves_per_simd(kernel, THREADS.get(path, 256))),
                str(loop.counts["vector"]),
                str(loop.counts["dual"]),
                str(loop.wmma) if loop.wmma else "-",
                str(loop.counts["lds"]),
                str(loop.counts["memory"]),
                str(loop.cycles),
                f"{issued / weights:.2f}",
                f"{loop.wmma_share:.0%}" if loop.wmma else "-",
            )


def shape_rows(emulator: Emulator) -> Iterator[tuple[str, ...]]:
    yield (
        "K x N",
        "M",
        "dtype",
        "path",
        "K split",
        "blocks",
        "waves per CU",
        "MB moved",
        "floor MB",
        "floor us",
        "issue us",
        "model us",
    )
    for k, n in SHAPES:
        for m in ROWS:
            for dtype, kind in TORCH.items():
                plan = emulator.plan(m, n, k, GROUP, kind)
                path = emulator.paths[plan.path]
                loop = assembled()[kernel_name(path, dtype)].loop()
                blocks = plan.grid_x * plan.grid_y * plan.grid_z
                waves = blocks * plan.threads // 32
                least = n * k / 2 + 2 * m * (k + n)  # codes, activations and results, each once
                moved = least + n * (k / GROUP) * 2.5 + (8 * plan.splits * m * n if plan.splits > 1 else 0)
                steps = steps_of_all_waves(path, plan.splits, blocks, k)
                ops = 2 * m * n * k / 122.9e12  # 512 operations per unit and cycle
                issue = steps * loop.cycles / (COMPUTE_UNITS * SIMDS_PER_UNIT * CLOCK)
                limit = max(least / BANDWIDTH, ops if loop.wmma else 0)
                yield (
                    f"{k} x {n}",
                    str(m),
                    dtype,
                    path,
                    str(plan.splits),
                    str(blocks),
                    f"{waves / COMPUTE_UNITS:.1f}",
                    f"{moved / 1e6:.2f}",
                    f"{least / 1e6:.2f}",
                    f"{limit * 1e6:.1f}",
                    f"{issue * 1e6:.1f}",
                    f"{plan.microseconds:.1f}",
                )


def steps_of_all_waves(path: str, splits: int, blocks: int, k: int) -> float:
    """Turns of the inner loop, over all waves of the card."""
    if path.startswith("decode"):
        return blocks * 8 * ceil(k / 32 / splits / 32)
    slices = {"prefill_16x64": 8, "prefill_32x64": 8, "prefill_64x128": 2, "prefill_128x128": 1}[path]
    waves = blocks * THREADS.get(path, 256) / 32
    return waves * ceil(k / 32 / splits / slices)


def choice_rows(emulator: Emulator) -> Iterator[tuple[str, ...]]:
    rows = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 2048)
    yield ("K x N", *(f"M={m}" for m in rows))
    for k, n in ((4096, 1024), (4096, 4096), (4096, 11008), (11008, 4096), (5120, 27648)):
        plans = [emulator.plan(m, n, k, GROUP, torch.float16) for m in rows]
        yield (
            f"{k} x {n}",
            *(f"{short(emulator.paths[plan.path])}{f' /{plan.splits}' if plan.splits > 1 else ''}" for plan in plans),
        )


def short(path: str) -> str:
    return path.removeprefix("decode_").removeprefix("prefill_")


def table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in body)]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The three tables by the name of their place in the docs."""
    with TemporaryDirectory() as folder:
        emulator = Emulator(build(Path(folder) / "libemulated.so"))
        return {
            "kernels": table(kernel_rows(emulator.paths)),
            "shapes": table(shape_rows(emulator)),
            "choices": table(choice_rows(emulator)),
        }


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with every part between its two marks replaced."""
    for name, part in parts.items():
        begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the text lacks {begin.strip()} or {end}")
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/rdna3.md")
    wanted = parser.parse_args()
    parts = tables()
    if wanted.write:
        DOCS.write_text(filled(DOCS.read_text(), parts))
    else:
        print("\n\n".join(parts.values()))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
