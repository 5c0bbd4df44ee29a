// Runs every path on exactly sized heap blocks, for AddressSanitizer and UndefinedBehaviorSanitizer: any access outside, and
// any misaligned one, ends the process. Prints the number of products.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <memory>

#include "launch.h"

namespace {

struct Free {
  void operator()(void* p) const { free(p); }
};
using Block = std::unique_ptr<void, Free>;

uint32_t next_random() {
  static uint32_t state = 1;
  return state = state * 1664525u + 1013904223u;
}

// Random bits that are small normal numbers both as fp16 and as bf16 where `values` is set.
Block filled(size_t bytes, bool values) {
  Block block(malloc(bytes == 0 ? 1 : bytes));
  for (size_t i = 0; i < bytes / 2; ++i) {
    const uint16_t bits = static_cast<uint16_t>(next_random() >> 16);
    static_cast<uint16_t*>(block.get())[i] = values ? (bits & 0x83FF) | 0x3000 : bits;
  }
  return block;
}

bool run(int path, int m, int n, int k, int group, int bf16, int zero_offset, bool act_order, int splits) {
  const size_t groups = static_cast<size_t>(k / group);
  const Block a = filled(size_t(m) * k * 2, true), qweight = filled(size_t(k) / 8 * n * 4, false);
  const Block qzeros = filled(groups * n / 8 * 4, false), scales = filled(groups * n * 2, true);
  const Block out(malloc(size_t(m) * n * 2));
  const Block perm(act_order ? malloc(size_t(k) * 4) : nullptr);
  for (int i = 0; act_order && i < k; ++i) static_cast<int32_t*>(perm.get())[i] = k - 1 - i;
  if (act_order) static_cast<int32_t*>(perm.get())[0] = -5;  // no permutation: must not be followed out of the row
  if (act_order) static_cast<int32_t*>(perm.get())[k - 1] = 1 << 30;
  qcompile_rdna3_problem p = {};
  p.a = a.get();
  p.qweight = qweight.get();
  p.qzeros = qzeros.get();
  p.scales = scales.get();
  p.perm = perm.get();
  p.out = out.get();
  p.m = m;
  p.n = n;
  p.k = k;
  p.group = group;
  p.bf16 = bf16;
  p.zero_offset = zero_offset;
  p.path = path;
  p.splits = splits;
  qcompile_rdna3_plan plan;
  if (qcompile_rdna3_make_plan(&p, &plan) != nullptr) return false;
  const size_t bytes = qcompile_rdna3_workspace(&p);
  const Block workspace(malloc(bytes == 0 ? 1 : bytes));
  p.workspace = workspace.get();
  const char* reason = qcompile_rdna3_launch(&p);
  if (reason != nullptr) {
    fprintf(stderr, "path %d refused: %s\n", path, reason);
    exit(1);
  }
  return true;
}

}  // namespace

int main() {
  const int shapes[][4] = {{1, 8, 32, 32},   {2, 8, 64, 64},    {3, 40, 96, 32},
                           {7, 72, 288, 96}, {17, 136, 64, 32}, {70, 200, 96, 96}};
  int products = 0;
  for (int path = 0; qcompile_rdna3_path_name(path) != nullptr; ++path) {
    for (const auto& shape : shapes) {
      for (int bits = 0; bits < 8; ++bits) {
        const int splits = shape[2] >= 128 && (bits & 1) != 0 ? 2 : 1;
        products += run(path, shape[0], shape[1], shape[2], shape[3], bits & 1, bits >> 1 & 1, (bits & 4) != 0, splits);
      }
    }
  }
  printf("%d\n", products);
  return 0;
}
