// Chooses path and K split from what the card can do: bytes against bandwidth, issue cycles against SIMDs, waves against
// registers and LDS. Figures of the card: AMD, "RDNA3 Instruction Set Architecture" and the Radeon RX 7900 XTX data sheet.
#include <algorithm>
#include <cmath>

#include "dispatch.h"

namespace qcompile_rdna3 {

const Path kPaths[] = {
    // name          decode rows cols  thr  lds    sl  wcols cycles       vgprs
    {"decode_m1", true, 1, 32, 256, 20480, 32, 8, {281, 273}, {84, 80}},
    {"decode_m2", true, 2, 32, 256, 20480, 32, 8, {354, 357}, {101, 96}},
    {"decode_m4", true, 4, 32, 256, 20480, 32, 8, {471, 536}, {131, 127}},
    {"decode_m8", true, 8, 32, 256, 20480, 32, 8, {750, 963}, {173, 167}},
    {"prefill_16x64", false, 16, 64, 256, 21504, 8, 64, {484, 496}, {142, 136}},
    {"prefill_32x64", false, 32, 64, 256, 43008, 8, 64, {782, 837}, {201, 197}},
    {"prefill_64x128", false, 64, 128, 128, 32768, 2, 64, {1331, 1453}, {231, 243}},
    {"prefill_128x128", false, 128, 128, 128, 21504, 1, 64, {1331, 1454}, {230, 247}},
};
const int kPathCount = sizeof(kPaths) / sizeof(kPaths[0]);

namespace {

// gfx1100 as a Radeon RX 7900 XTX: 48 work-group processors of four SIMDs, 1536 registers per lane and SIMD in portions of
// 24, at most 16 waves per SIMD, 128 KiB of LDS per work-group processor.
constexpr double kProcessors = 48, kSimds = 4, kRegisters = 1536, kPortion = 24, kMostWaves = 16, kLds = 131072;
constexpr double kClock = 2.5e3;        // cycles per microsecond
constexpr double kBandwidth = 960e3;    // bytes per microsecond
constexpr double kMemoryLatency = 0.8;  // microseconds until a load from memory is answered under load
constexpr double kLaunch = 2.5;         // microseconds for one more kernel on the same stream
constexpr double kBlockCycles = 2500;   // start, first loads and final sums of a block
constexpr double kStepLatency = 300;    // cycles of a step that only other waves of the SIMD can hide

double waves_per_simd(const Path& path, bool bf16) {
  const double taken = std::ceil(path.vgprs[bf16] / kPortion) * kPortion;
  return std::min(kMostWaves, std::floor(kRegisters / taken));
}

double blocks_per_processor(const Path& path, bool bf16) {
  const double by_registers = std::floor(waves_per_simd(path, bf16) * kSimds / (path.threads / 32));
  return std::max(1.0, std::min(by_registers, std::floor(kLds / path.lds)));
}

double microseconds(const Path& path, const qcompile_rdna3_problem& p, int splits) {
  const bool bf16 = p.bf16 != 0;
  const double blocks_m = std::ceil(double(p.m) / path.rows), blocks_n = std::ceil(double(p.n) / path.columns);
  const double blocks = blocks_m * blocks_n * splits;
  // A decode wave takes four units of K at once, a prefill wave one step of its slice.
  const double steps = std::ceil(double(p.k) / 32 / splits / path.slices);
  const double waves = path.threads / 32;
  const double per_block = steps * path.cycles[bf16] * waves / kSimds;
  const double resident = blocks_per_processor(path, bf16);
  const double blocks_here = std::ceil(blocks / kProcessors);
  const double at_once = std::min(resident, blocks_here);
  const double waves_here = at_once * waves / kSimds;
  const double issue = blocks_here * per_block / kClock;
  const double one_round = steps * (path.cycles[bf16] * std::max(1.0, waves_here) + kStepLatency / std::max(1.0, waves_here));
  const double latency = std::ceil(blocks_here / resident) * (one_round + kBlockCycles) / kClock;
  // Weights, scales and zero points once (further row blocks find them in the cache), activations and results once.
  const double groups = double(p.k) / p.group;
  const double bytes = p.n * (double(p.k) / 2 + groups * 2.5) + 2.0 * p.m * (double(p.k) + p.n);
  const double in_flight = std::min(blocks, resident * kProcessors) * waves * (path.decode ? 4096 : 2048);
  const double traffic = bytes / std::min(kBandwidth, in_flight / kMemoryLatency);
  double total = std::max({issue, latency, traffic});
  if (splits > 1) total += kLaunch + 8.0 * splits * p.m * p.n / kBandwidth;
  if (!path.decode && p.perm != nullptr) total += kLaunch + 4.0 * p.m * p.k / kBandwidth;
  return total;
}

bool fits(const Path& path, const qcompile_rdna3_problem& p, int splits) {
  if (path.decode && p.m > path.rows) return false;
  // Parts are worth it where blocks are few; partial sums beyond the cache never are.
  if (splits > 1 && (p.k / 32 < splits * 2 || int64_t(p.m) * p.n > (int64_t(1) << 22))) return false;
  return true;
}

const char* check(const qcompile_rdna3_problem& p) {
  if (p.m < 1 || p.n < 8 || p.k < 32) return "M must be at least 1, N at least 8 and K at least 32";
  if (p.n % 8 != 0) return "N must be a multiple of 8";
  if (p.k % 32 != 0) return "K must be a multiple of 32";
  if (p.group < 32 || p.group % 32 != 0 || p.k % p.group != 0) return "the group must be a multiple of 32 that divides K";
  if (p.k > (1 << 20) || p.n > (1 << 26)) return "K may be 2^20 and N 2^26 at most";
  if (p.path < -1 || p.path >= kPathCount) return "unknown path";
  if (p.splits < 0 || p.splits > kMaxSplits) return "K can be split in 1 to 8 parts";
  return nullptr;
}

}  // namespace
}  // namespace qcompile_rdna3

using namespace qcompile_rdna3;

extern "C" const char* qcompile_rdna3_path_name(int32_t path) {
  return path >= 0 && path < kPathCount ? kPaths[path].name : nullptr;
}

extern "C" const char* qcompile_rdna3_make_plan(const qcompile_rdna3_problem* problem, qcompile_rdna3_plan* plan) {
  const qcompile_rdna3_problem& p = *problem;
  if (const char* reason = check(p)) return reason;
  plan->path = -1;
  for (int index = 0; index < kPathCount; ++index) {
    if (p.path >= 0 && p.path != index) continue;
    for (int splits = 1; splits <= kMaxSplits; splits *= 2) {
      const int wanted = p.splits > 0 ? p.splits : splits;
      if (fits(kPaths[index], p, wanted)) {
        const double time = microseconds(kPaths[index], p, wanted);
        if (plan->path < 0 || time < plan->microseconds) {
          plan->path = index;
          plan->splits = wanted;
          plan->microseconds = time;
        }
      }
      if (p.splits > 0) break;
    }
  }
  if (plan->path < 0) return "this path cannot run this shape: too many rows, or K too short for the split";
  const Path& path = kPaths[plan->path];
  const int blocks_m = (p.m + path.rows - 1) / path.rows, blocks_n = (p.n + path.columns - 1) / path.columns;
  plan->grid_x = path.decode ? blocks_n : blocks_m;
  plan->grid_y = path.decode ? 1 : blocks_n;
  plan->grid_z = plan->splits;
  plan->threads = path.threads;
  plan->gathers = !path.decode && p.perm != nullptr;
  return nullptr;
}

extern "C" size_t qcompile_rdna3_workspace(const qcompile_rdna3_problem* problem) {
  qcompile_rdna3_plan plan;
  if (qcompile_rdna3_make_plan(problem, &plan) != nullptr) return 0;
  const size_t partial = plan.splits > 1 ? size_t(plan.splits) * problem->m * problem->n * 4 : 0;
  const size_t gathered = plan.gathers ? size_t(problem->m) * problem->k * 2 : 0;
  return partial + gathered;
}
