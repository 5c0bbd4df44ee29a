// Decodes VPDPBUSD (Intel SDM volume 2: VEX.{128,256}.66.0F38.W0 50 /r) and computes it on the registers in the signal frame
// (volume 1, chapter 13: the standard form of XSAVE; offsets by CPUID leaf 0xD).
#include "vnni_trap.h"

#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

namespace qcompile_trap {
namespace {

// Components of the saved state.
constexpr int kSse = 1, kAvx = 2, kZmmHigh = 6;
constexpr int kXmm = 160, kSoftware = 464, kHeader = 512;
constexpr uint32_t kMagic = 0x46505853;  // of the kernel: more than FXSAVE's 512 bytes follow

unsigned ymm_high, zmm_high;  // offsets
long count = 0;

[[noreturn]] void refuse(const char* why, const uint8_t* at) {
  fprintf(stderr, "trap: %s, at the bytes", why);
  for (int i = 0; i < 11; ++i) fprintf(stderr, " %02x", at[i]);
  fputc('\n', stderr);
  abort();
}

template <class T>
T read(const void* from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}

// A component that is not in use is all zeros, whatever its bytes say.
uint8_t* component(uint8_t* state, int index, unsigned offset, size_t bytes) {
  uint64_t used = read<uint64_t>(state + kHeader);
  if ((used >> index & 1) == 0) {
    memset(state + offset, 0, bytes);
    used |= uint64_t{1} << index;
    memcpy(state + kHeader, &used, sizeof used);
  }
  return state + offset;
}

struct Registers {
  uint8_t *low, *high;  // 16 bytes of each of 16 registers

  void get(int index, uint8_t* value) const {
    memcpy(value, low + 16 * index, 16);
    memcpy(value + 16, high + 16 * index, 16);
  }
  void set(int index, const uint8_t* value) const {
    memcpy(low + 16 * index, value, 16);
    memcpy(high + 16 * index, value + 16, 16);
  }
};

int64_t general(const ucontext_t* context, int index) {
  constexpr int kPlace[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context->uc_mcontext.gregs[kPlace[index]];
}

struct Instruction {
  bool wide;        // 256 bits
  int sum, first;   // registers
  int second;       // a register, or -1: memory
  int64_t address;
  int length;
};

Instruction decode(const ucontext_t* context, const uint8_t* at) {
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x83) != 1 || at[3] != 0x50) refuse("no VPDPBUSD with the VEX prefix", at);
  const int r = at[1] & 0x80 ? 0 : 8, x = at[1] & 0x40 ? 0 : 8, b = at[1] & 0x20 ? 0 : 8;
  const int mod = at[4] >> 6, rm = at[4] & 7;
  Instruction found = {(at[2] & 4) != 0, (at[4] >> 3 & 7) | r, ~at[2] >> 3 & 15, -1, 0, 5};
  if (mod == 3) {
    found.second = rm | b;
    return found;
  }
  bool base = true;
  int base_register = rm | b;
  if (rm == 4) {
    const int sib = at[found.length++], index = (sib >> 3 & 7) | x;
    if (index != 4) found.address = general(context, index) * (1 << (sib >> 6));
    base_register = (sib & 7) | b;
    base = mod != 0 || (sib & 7) != 5;
  }
  const bool from_here = mod == 0 && rm == 5;
  if (from_here) base = false;
  if (base) found.address += general(context, base_register);
  if (mod == 1) {
    found.address += static_cast<int8_t>(at[found.length]);
    found.length += 1;
  } else if (mod == 2 || !base) {
    found.address += read<int32_t>(at + found.length);
    found.length += 4;
  }
  if (from_here) found.address += reinterpret_cast<int64_t>(at) + found.length;
  return found;
}

void compute(const ucontext_t* context, const Instruction& instruction, const uint8_t* at) {
  uint8_t* const state = reinterpret_cast<uint8_t*>(context->uc_mcontext.fpregs);
  if (state == nullptr || read<uint32_t>(state + kSoftware) != kMagic) refuse("the signal frame holds no AVX state", at);
  const Registers registers = {component(state, kSse, kXmm, 256), component(state, kAvx, ymm_high, 256)};
  const int bytes = instruction.wide ? 32 : 16;
  uint8_t sums[32], first[32], second[32], results[32] = {};
  registers.get(instruction.sum, sums);
  registers.get(instruction.first, first);
  if (instruction.second >= 0)
    registers.get(instruction.second, second);
  else
    memcpy(second, reinterpret_cast<const void*>(instruction.address), static_cast<size_t>(bytes));
  for (int lane = 0; lane < bytes; lane += 4) {
    uint32_t sum = read<uint32_t>(sums + lane);
    for (int i = lane; i < lane + 4; ++i) sum += static_cast<uint32_t>(first[i] * static_cast<int8_t>(second[i]));
    memcpy(results + lane, &sum, sizeof sum);
  }
  registers.set(instruction.sum, results);
  // The VEX prefix clears what a register has beyond the vector; what is not in use is clear already.
  if ((read<uint64_t>(state + kHeader) >> kZmmHigh & 1) != 0) memset(state + zmm_high + 32 * instruction.sum, 0, 32);
}

void handle(int, siginfo_t*, void* frame) {
  ucontext_t* const context = static_cast<ucontext_t*>(frame);
  const uint8_t* const at = reinterpret_cast<const uint8_t*>(context->uc_mcontext.gregs[REG_RIP]);
  const Instruction instruction = decode(context, at);
  compute(context, instruction, at);
  context->uc_mcontext.gregs[REG_RIP] += instruction.length;
  ++count;
}

}  // namespace

void install() {
  // Asked here and not in the handler: under a hypervisor CPUID costs more than all the rest.
  unsigned a, c, d;
  __cpuid_count(0xd, kAvx, a, ymm_high, c, d);
  __cpuid_count(0xd, kZmmHigh, a, zmm_high, c, d);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGILL, &action, nullptr) != 0) {
    perror("trap: sigaction");
    abort();
  }
}

long computed() { return count; }

}  // namespace qcompile_trap
