// Which instruction set the kernels use: asked once of the processor and the operating system, or forced by
// QCOMPILE_ISA. A level is a name that covers everything below it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace qcompile {

// Those of one architecture stand in order; a machine has one architecture.
enum class Isa : int {
  generic = 0,
  avx2 = 1,
  avx2_vnni = 2,
  avx512 = 3,
  avx512_bf16 = 4,
  neon = 5,
  neon_dotprod = 6,
  neon_i8mm = 7,
  neon_bf16 = 8,
};

// Facts beyond the level that some kernels need.
struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx512_vbmi = false;       // permutations of bytes
  bool avx512_bf16_vbmi = false;  // both
  bool avx_vnni = false;     // VPDPBUSD on 256 bits with the VEX prefix
  bool vnni_256 = false;     // the same instruction with whichever prefix
  bool neon = false;          // Advanced SIMD of 64-bit Arm
  bool neon_dotprod = false;  // and SDOT, UDOT
  bool neon_i8mm = false;     // and SMMLA, and what neon_dotprod has
  bool neon_bf16 = false;     // and BFDOT, BFMMLA
  // Products of pairs of bfloat16 do half of what those of float32 do in the same time, instead of twice as much: Intel's processors
  // (170 against 341 Gop/s were measured on Sapphire Rapids with two threads).
  bool slow_bf16_pairs = false;
};

// Asks the processor and the operating system (XCR0); one file for each architecture, features_*.cpp.
CpuFeatures detect_features();

const char* isa_name(Isa isa);

// What the processor has and the operating system saves on a context switch (XCR0).
const CpuFeatures& cpu_features();

// The features that a level may use: those of the machine, without the ones above the level.
CpuFeatures features_at(Isa isa);

// One implementation of something, and what it takes. Tables of them stand best first and end with one for any processor.
template <class What>
struct Choice {
  bool CpuFeatures::*needs;  // null: nothing
  const What* what;
  bool pairs_of_bf16 = false;  // multiplies pairs of bfloat16, which lose bits of any other dtype
};

// The first of these that the level may use and that has something for `pick`; keeps_bf16: whether x is bfloat16 or may become it.
template <class What, size_t N, class Pick>
auto first_of(const Choice<What> (&table)[N], Isa isa, bool keeps_bf16, const Pick& pick) {
  const CpuFeatures features = features_at(isa);
  for (const Choice<What>& choice : table) {
    const bool allowed = (choice.needs == nullptr || features.*choice.needs) && (keeps_bf16 || !choice.pairs_of_bf16);
    if (auto found = allowed ? pick(*choice.what) : nullptr) return found;
  }
  return pick(*table[N - 1].what);
}

template <class What, size_t N>
const What& first_of(const Choice<What> (&table)[N], Isa isa, bool keeps_bf16 = true) {
  return *first_of(table, isa, keeps_bf16, [](const What& what) { return &what; });
}

// Levels of this machine that were compiled in, best first.
const std::vector<Isa>& available_isas();

// The level in use: QCOMPILE_ISA if set, else the best. Throws std::runtime_error for a level that is not available.
Isa chosen_isa();

// -1 is the chosen level, otherwise an index of available_isas(). Throws std::runtime_error outside of it.
Isa isa_of_index(long long index);

// The same for products that are worth little but for their multiplications: -1 is "avx512" where that level multiplies faster, unless
// QCOMPILE_ISA says another.
Isa product_isa_of_index(long long index);

}  // namespace qcompile
