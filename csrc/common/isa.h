// Which instruction set the kernels use: asked once of the processor and the operating system, or forced by
// QCOMPILE_ISA. A level is a name that covers everything below it.
#pragma once

#include <string>
#include <vector>

namespace qcompile {

enum class Isa : int { generic = 0, avx2 = 1, avx2_vnni = 2, avx512 = 3, avx512_bf16 = 4 };

// Facts beyond the level that some kernels need.
struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx_vnni = false;     // VPDPBUSD on 256 bits with the VEX prefix
  bool vnni_256 = false;     // the same instruction with whichever prefix
};

const char* isa_name(Isa isa);

// What the processor has and the operating system saves on a context switch (XCR0).
const CpuFeatures& cpu_features();

// The features that a level may use: those of the machine, without the ones above the level.
CpuFeatures features_at(Isa isa);

// Levels of this machine that were compiled in, best first.
const std::vector<Isa>& available_isas();

// The level in use: QCOMPILE_ISA if set, else the best. Throws std::runtime_error for a level that is not available.
Isa chosen_isa();

// -1 is the chosen level, otherwise an index of available_isas(). Throws std::runtime_error outside of it.
Isa isa_of_index(long long index);

}  // namespace qcompile
