// VPDPBUSD with the VEX prefix on processors without AVX-VNNI: they raise SIGILL, and a handler computes the instruction.
//
// Everything else that raises SIGILL ends the process, with the bytes of the instruction.
#pragma once

namespace qcompile_trap {

void install();

// Instructions computed so far: 0 where the processor has them itself.
long computed();

}  // namespace qcompile_trap
