// Runs the rounding to small floats of every level of this machine over buffers of exactly their size. Meant to be built with -fsanitize=address,undefined. Prints the number of calls checked.
#include <vector>

#include "cpu/linear.h"
#include "cpu/rounding.h"
#include "exact.h"

using namespace qcompile;

int main() {
  long checked = 0;
  for (const Element element : {Element::bf16, Element::fp16, Element::f32}) {
    for (int64_t number = 0; number < kFloatKinds; ++number) {
      const FloatKind kind = static_cast<FloatKind>(number);
      const int64_t group = group_of(kind);
      for (const int64_t blocks : {1, 2, 3, 9, 130}) {
        const int64_t k = group == 0 ? blocks : blocks * group, m = 3;
        const size_t bytes = static_cast<size_t>(m * k * element_bytes(element));
        const Bytes x = exactly(static_cast<int64_t>(bytes));
        for (size_t i = 0; i < bytes; ++i) x.get()[i] = static_cast<uint8_t>(numbers());
        for (const bool narrow : {false, true}) {
          for (const Isa isa : available_isas()) {
            const Bytes y = exactly(static_cast<int64_t>(bytes));
            const FloatRounding rounding = {x.get(), y.get(), k, element, kind, narrow ? element : Element::f32, 0.75f};
            round_rows_of(isa)(rounding, 0, 1);
            round_rows_of(isa)(rounding, 1, m);
            ++checked;
          }
        }
      }
    }
  }
  std::printf("%ld\n", checked);
  return 0;
}
