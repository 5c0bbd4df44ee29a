"""The emulation ends the process, with a sentence, where the card would hang or answer garbage."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc/rocm"

PROGRAM = """
#include <stdio.h>
#include "primitives.h"
using namespace qcompile_rdna3;
alignas(16) static float memory[256];
int main() {
  qcompile_emulation::run(1, 1, 1, 64, [] {
    const int thread = thread_index();
    half16_t a = {}, b = {};
    float8_t c = {};
    (void)thread, (void)a, (void)b, (void)c;
    %s
  });
  printf("done %%g\\n", memory[0]);
}
"""

FAULTS = {
    "if (thread < 63) lds_barrier();": "partial barrier: 63 of 64 threads",
    "if (thread != 40) c = wmma(a, b, c);": "divergent wave operation: lane 0 of wave 1 waits at wmma",
    "if (thread % 2) c = wmma(a, b, c); else memory[0] = shuffle_xor<1>(1.0f);": "divergent wave operation: wmma and shuffle meet",
    "memory[0] = thread % 2 ? shuffle_xor<1>(1.0f) : shuffle_xor<2>(1.0f);": "shuffles by",
    "a[3] = (_Float16)(float)thread; c = wmma(a, b, c);": "rows of lanes 0 and 16 differ",
    "b[3] = (_Float16)(float)thread; c = wmma(a, b, c);": "columns of lanes 0 and 16 differ",
    "memory[uniform(thread)] = 1;": "declared uniform is 0 in lane 0 and 1 in lane 1",
    "memory[0] += load<float4_t>(memory + 1)[0];": "misaligned access: 16 bytes",
    "store(reinterpret_cast<char*>(memory) + 2, 1.0f);": "misaligned access: 4 bytes",
}

SOUND = """
    for (int k = 0; k < 16; ++k) { a[k] = (_Float16)(float)(k == thread % 16); b[k] = (_Float16)(float)(10 * (thread % 16) + k); }
    c = wmma(a, b, c);
    memory[64 + thread] = shuffle_xor<16>((float)thread);
    lds_barrier();
    if (thread == 21) memory[0] = c[3] * 1000 + load<float>(memory + 64 + 5);
"""


def run(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM % body)
    flags = ("-std=c++17", "-O1", "-DQCOMPILE_EMULATION", f"-I{HERE}", f"-I{KERNELS}")
    subprocess.run(["g++", *flags, str(source), str(HERE / "emulation.cpp"), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("body", FAULTS)
def test_faults_end_the_process(tmp_path: Path, body: str) -> None:
    done = run(tmp_path, body)
    assert done.returncode != 0
    assert done.stderr.startswith("emulation: ")
    assert FAULTS[body] in done.stderr


def test_wmma_and_shuffles_follow_the_lanes_of_wave32(tmp_path: Path) -> None:
    """Identity times B: element 3 of lane 21 is row 2 * 3 + 1, column 5, that is B[7][5] = 57; lane 5 gets 21 from its partner."""
    done = run(tmp_path, SOUND)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done 57021\n"
