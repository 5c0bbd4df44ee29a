// Executes VPDPBUSD with the VEX prefix, by itself and in the kernels of level "avx2_vnni", on processors that have it and on
// those where vnni_trap.h computes it. Prints: instructions checked, products checked, instructions computed by the trap.
#include "products.h"
#include "vnni_trap.h"

using namespace qcompile;

namespace {

struct alignas(64) Operands {
  uint8_t sum[32], first[32], second[32], result[32];
};

}  // namespace

// Outside of namespaces and functions, so that the assembler can name it.
extern "C" {
__attribute__((used, visibility("hidden"))) uint8_t vex_vnni_operand[32];
}

namespace {

#define ALL_REGISTERS                                                                                                              \
  "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", \
      "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

// sum <- D, first <- A, then SET and the instruction; all of D is the result.
#define RUN(D, A, SET, INSTRUCTION)                                                                                             \
  [](Operands* o) {                                                                                                             \
    __asm__ volatile("vmovdqu (%0), %%ymm" #D "\n\tvmovdqu 32(%0), %%ymm" #A "\n\t" SET "\n\t%{vex%} vpdpbusd " INSTRUCTION     \
                     "\n\tvmovdqu %%ymm" #D ", 96(%0)\n\tvzeroupper"                                                            \
                     :                                                                                                          \
                     : "D"(o)                                                                                                   \
                     : ALL_REGISTERS);                                                                                          \
  }
#define REGISTERS(D, A, B) {RUN(D, A, "vmovdqu 64(%0), %%ymm" #B, "%%ymm" #B ", %%ymm" #A ", %%ymm" #D), 32}
#define HALVES(D, A, B) {RUN(D, A, "vmovdqu 64(%0), %%ymm" #B, "%%xmm" #B ", %%xmm" #A ", %%xmm" #D), 16}
#define MEMORY(D, A, SET, PLACE) {RUN(D, A, SET, PLACE ", %%ymm" #A ", %%ymm" #D), 32}
#define HALF_MEMORY(D, A, SET, PLACE) {RUN(D, A, SET, PLACE ", %%xmm" #A ", %%xmm" #D), 16}

struct Form {
  void (*run)(Operands*);
  int bytes;
};

// Every register in every place, or both sides of the bit that the prefix adds; every kind of address.
const Form kForms[] = {
    REGISTERS(0, 1, 2),
    REGISTERS(3, 4, 5),
    REGISTERS(6, 7, 8),
    REGISTERS(9, 10, 11),
    REGISTERS(12, 13, 14),
    REGISTERS(15, 0, 1),
    REGISTERS(1, 15, 0),
    REGISTERS(2, 3, 15),
    REGISTERS(14, 8, 7),
    HALVES(0, 1, 2),
    HALVES(15, 9, 4),
    HALVES(7, 12, 13),
    MEMORY(0, 1, "", "64(%%rdi)"),
    MEMORY(8, 15, "lea 64(%%rdi), %%rax", "(%%rax)"),
    MEMORY(3, 2, "lea 64(%%rdi), %%r8", "(%%r8)"),
    MEMORY(4, 5, "lea 64(%%rdi), %%r13", "(%%r13)"),
    MEMORY(5, 4, "lea 64(%%rdi), %%r12", "(%%r12)"),
    MEMORY(11, 6, "lea 128(%%rdi), %%rbx", "-64(%%rbx)"),
    MEMORY(6, 11, "lea -4032(%%rdi), %%r10", "4096(%%r10)"),
    MEMORY(7, 9, "lea 8256(%%rdi), %%rcx", "-8192(%%rcx)"),
    MEMORY(9, 7, "mov $64, %%rax", "(%%rdi,%%rax)"),
    MEMORY(10, 1, "mov $-8, %%r14", "128(%%rdi,%%r14,8)"),
    MEMORY(12, 0, "mov $16, %%r9", "(%%rdi,%%r9,4)"),
    MEMORY(13, 14, "lea 64(%%rdi), %%r15\n\tmov $-1000, %%rdx", "2000(%%r15,%%rdx,2)"),
    MEMORY(14, 13, "lea 64(%%rdi), %%rsi\n\tshr $3, %%rsi", "(,%%rsi,8)"),
    MEMORY(1, 3, "lea 64(%%rdi), %%r11\n\tsub %%rsp, %%r11", "(%%rsp,%%r11)"),
    MEMORY(2, 10, "vmovdqu 64(%%rdi), %%ymm15\n\tvmovdqu %%ymm15, vex_vnni_operand(%%rip)", "vex_vnni_operand(%%rip)"),
    HALF_MEMORY(15, 8, "", "64(%%rdi)"),
    HALF_MEMORY(4, 6, "mov $8, %%r12", "(%%rdi,%%r12,8)"),
};

// Each of 32 bits: its sum and four products of an unsigned and a signed byte, modulo 2^32. Beyond the vector zeros.
void expect(const Operands& operands, int bytes, uint8_t* wanted) {
  std::memset(wanted, 0, 32);
  for (int lane = 0; lane < bytes; lane += 4) {
    int32_t start;
    std::memcpy(&start, operands.sum + lane, 4);
    int64_t sum = start;
    for (int i = lane; i < lane + 4; ++i) sum += int64_t{operands.first[i]} * static_cast<int8_t>(operands.second[i]);
    const uint32_t kept = static_cast<uint32_t>(sum);
    std::memcpy(wanted + lane, &kept, 4);
  }
}

long check_forms() {
  long checked = 0;
  for (const Form& form : kForms) {
    for (int round = 0; round < 100; ++round) {
      Operands operands;
      for (int i = 0; i < 32; ++i) {
        // The ends of each range, where an instruction that saturates would differ, then anything.
        const uint32_t end = round == 0 ? 0x7fffffff : 0x80000000;
        operands.sum[i] = static_cast<uint8_t>(round < 2 ? end >> (i % 4 * 8) : numbers());
        operands.first[i] = static_cast<uint8_t>(round < 2 ? 0xff : numbers());
        operands.second[i] = static_cast<uint8_t>(round == 0 ? 0x7f : round == 1 ? 0x80 : numbers());
      }
      uint8_t wanted[32];
      expect(operands, form.bytes, wanted);
      form.run(&operands);
      if (std::memcmp(operands.result, wanted, 32) != 0) std::fprintf(stderr, "form %ld\n", static_cast<long>(&form - kForms));
      require(std::memcmp(operands.result, wanted, 32) == 0, "one instruction");
      ++checked;
    }
  }
  return checked;
}

long check_products() {
  long checked = 0;
  for (const auto& of : kShapes) {
    for (const int bits : {4, 8}) {
      const LinearKernel& vex = bits == 4 ? *kAvx2VnniKernels.int4_a8 : *kAvx2VnniKernels.int8;
      const LinearKernel& evex = bits == 4 ? *kAvx2VnniEvexKernels.int4_a8 : *kAvx2VnniEvexKernels.int8;
      const LinearKernel& generic = bits == 4 ? *kGenericKernels.int4_a8 : *kGenericKernels.int8;
      for (int variant = 0; variant < 3; ++variant) {
        for (const bool zeros : {false, true}) {
          const Packed packed = make(of[0], of[1], of[2], bits, zeros, static_cast<ScaleKind>(variant));
          for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::f32}) {
            for (const int64_t m : kRows) {
              // A trap takes microseconds, and 13 rows make panels of every size.
              if (m > 13 || (of[1] > 500 && dtype != Dtype::f32)) continue;
              Product product(packed, dtype, m, activation_of(bits, variant));
              product.plain_sums();
              const auto y = product.run(vex);
              require(product.apart(y.get(), product.run(generic).get()) <= product.tolerance(), "close to the generic level");
              require(product.error(y.get()) <= 0.02, "close to the plain sum");
              if (cpu_features().avx512_vnni)
                require(std::memcmp(y.get(), product.run(evex).get(), product.bytes()) == 0, "the bits of the EVEX prefix");
              ++checked;
            }
          }
        }
      }
    }
  }
  return checked;
}

}  // namespace

int main(int count, char** arguments) {
  qcompile_trap::install();
  if (count > 1 && std::strcmp(arguments[1], "ud2") == 0) __asm__ volatile("ud2");
  const long forms = check_forms(), products = check_products();
  std::printf("%ld %ld %ld\n", forms, products, qcompile_trap::computed());
  return 0;
}
