// Which implementation of rounding to small floats a level uses.
#include "cpu/rounding.h"

namespace qcompile {

extern const RoundRows kRoundingGeneric;
#if defined(__x86_64__)
extern const RoundRows kRoundingAvx2, kRoundingAvx512;
#endif

namespace {

constexpr Choice<RoundRows> kChoices[] = {
#if defined(__x86_64__)
    {&CpuFeatures::avx512, &kRoundingAvx512},
    {&CpuFeatures::avx2, &kRoundingAvx2},
#endif
    {nullptr, &kRoundingGeneric},
};

}  // namespace

RoundRows round_rows_of(Isa isa) { return first_of(kChoices, isa); }

}  // namespace qcompile
