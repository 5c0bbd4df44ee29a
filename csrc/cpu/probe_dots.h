// The probes of products of bytes, by what dots_x86.h has for them.
#pragma once

#include "cpu/dots_x86.h"
#include "cpu/probe_body.h"

namespace qcompile {
namespace {

#if QCOMPILE_VNNI
double probe_bytes(int64_t rounds) {
  return probe_multiply<Ints>(rounds, 8.0 * kWidth, [](const Ints& sum, const Ints& a, const Ints& b) __attribute__((always_inline)) {
    return multiply_add(sum, a, b);
  });
}
#else
// Pairs of 16-bit numbers, which bytes are widened to.
double probe_words(int64_t rounds) {
  return probe_multiply<Ints>(rounds, 4.0 * kWidth, [](const Ints& sum, const Ints& a, const Ints& b) __attribute__((always_inline)) {
    return multiply_words(sum, a) + b;
  });
}
#endif

}  // namespace
}  // namespace qcompile
