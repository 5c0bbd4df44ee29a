// What differs between fp16 and bf16: how a packed word becomes pairs of weights, what is left to correct, conversions.
#pragma once

#include "primitives.h"

namespace qcompile_rdna3 {

#if QC_KERNEL_BODY

// fp16: 0x6400 | q is 1024 + q and, with the nibble four bits higher, 1024 + 16 q. Both become q - z exactly, because every
// intermediate value is a multiple of its unit in the last place; z = 16 fits.
struct Half {
  using pair = half2_t;
  using fragment = half16_t;
  static constexpr bool folds_zero = false;

  struct Zero {
    uint32_t low;   // -(1024 + z), twice
    uint32_t high;  // -(64 + z), twice
  };

  static QC_INLINE Zero zero(uint32_t z) { return {z * 0x00010001u + 0xE400E400u, z * 0x00100010u + 0xD400D400u}; }

  // (q[0], q[1]), (q[2], q[3]), (q[4], q[5]), (q[6], q[7]) of one word, zero point subtracted.
  static QC_INLINE void expand(uint32_t word, Zero zero, pair out[4]) {
    const half2_t sixteenth = {(_Float16)0.0625f, (_Float16)0.0625f};
    const half2_t low = bits<half2_t>(zero.low), high = bits<half2_t>(zero.high);
    const uint32_t later = word >> 8;
    out[0] = bits<half2_t>((word & 0x000F000Fu) | 0x64006400u) + low;
    out[1] = bits<half2_t>((word & 0x00F000F0u) | 0x64006400u) * sixteenth + high;
    out[2] = bits<half2_t>((later & 0x000F000Fu) | 0x64006400u) + low;
    out[3] = bits<half2_t>((later & 0x00F000F0u) | 0x64006400u) * sixteenth + high;
  }

  static QC_INLINE float widen(uint16_t value) { return (float)bits<_Float16>(value); }
  static QC_INLINE uint16_t narrow(float value) { return bits<uint16_t>((_Float16)value); }
};

// bf16: 0x4300 | q is 128 + q (7 bits of mantissa, so every pair is shifted down first). There is no packed bf16 addition
// on this architecture, so the zero point is folded into the float32 sum: sum a (q - z) = sum a (128 + q) - (128 + z) sum a.
struct Brain {
  using pair = short2_t;
  using fragment = short16_t;
  static constexpr bool folds_zero = true;

  struct Zero {
    float folded;  // 128 + z
  };

  static QC_INLINE Zero zero(uint32_t z) { return {(float)(z + 128u)}; }

  static QC_INLINE void expand(uint32_t word, Zero, pair out[4]) {
    out[0] = bits<short2_t>((word & 0x000F000Fu) | 0x43004300u);
    out[1] = bits<short2_t>(((word >> 4) & 0x000F000Fu) | 0x43004300u);
    out[2] = bits<short2_t>(((word >> 8) & 0x000F000Fu) | 0x43004300u);
    out[3] = bits<short2_t>(((word >> 12) & 0x000F000Fu) | 0x43004300u);
  }

  // sum + a[0] + a[1]
  static QC_INLINE float add_pair(pair a, float sum) { return dot2(a, bits<short2_t>(0x3F803F80u), sum); }

  static QC_INLINE float widen(uint16_t value) { return bits<float>((uint32_t)value << 16); }

  // Round to nearest even; a NaN keeps its sign and becomes quiet.
  static QC_INLINE uint16_t narrow(float value) {
    const uint32_t word = bits<uint32_t>(value);
    const uint32_t rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
    return (uint16_t)(value != value ? (word >> 16) | 0x40u : rounded);
  }
};

// Scales and zero points of four neighbouring columns in one group, as they lie in memory.
struct GroupWords {
  bits4_t scales;
  uint32_t zeros;  // eight nibbles, of which the lower or the upper four belong to the columns
};

// Sixteen words of weights: rows of 8 values of K by four columns, and their group: 32 values of K.
struct UnitWords {
  words4_t rows[4];
  GroupWords group;
};

// The element `offset` bytes behind a pointer that is the same in all lanes. Pinned, the offset is not added to the pointer
// ahead of time, and the load takes a scalar pointer and one register of offsets per lane instead of computing 64-bit sums.
template <class T>
QC_INLINE T load_at(const void* base, uint32_t offset) {
  pin(offset);
  return load<T>(static_cast<const char*>(base) + offset);
}

// An entry of the permutation; one that is out of range reads the last column instead of foreign memory.
QC_INLINE uint32_t within(int32_t index, int count) {
  const uint32_t last = (uint32_t)count - 1u;
  return (uint32_t)index < last ? (uint32_t)index : last;
}

// Unit u holds values 32 u .. 32 u + 31 of K.
struct WeightReader {
  const uint32_t* weights;
  const uint32_t* zeros;
  const uint16_t* scales;
  size_t columns;
  uint32_t column;
  uint32_t per_group, inverse;

  template <class Arguments>
  QC_INLINE WeightReader(const Arguments& args, int first_column)
      : weights(args.qweight),
        zeros(args.qzeros),
        scales(args.scales),
        columns((size_t)args.n),
        column((uint32_t)first_column),
        per_group((uint32_t)args.group / 32u),
        inverse(0xFFFFFFFFu / ((uint32_t)args.group / 32u) + 1u) {}

  // u / per_group by a multiplication, exact because u * per_group < 2^32 (the launcher checks K); inverse wraps to 0 for 1.
  QC_INLINE uint32_t group_of(uint32_t unit) const {
    return per_group == 1u ? unit : (uint32_t)(((uint64_t)unit * inverse) >> 32);
  }

  // A unit that differs from lane to lane.
  QC_INLINE UnitWords read(int unit) const {
    UnitWords out;
    const uint32_t* rows = weights + (size_t)unit * 4u * columns + column;
    for (int row = 0; row < 4; ++row) out.rows[row] = load<words4_t>(rows + (size_t)row * columns);
    const size_t group = group_of((uint32_t)unit);
    out.group.scales = load<bits4_t>(scales + group * columns + column);
    out.group.zeros = load<uint32_t>(zeros + group * (columns / 8u) + column / 8u);
    return out;
  }

  // A unit that is the same in all lanes.
  QC_INLINE UnitWords read_uniform(int unit) const {
    UnitWords out;
    const uint32_t* rows = weights + (size_t)unit * 4u * columns;
    for (int row = 0; row < 4; ++row) out.rows[row] = load_at<words4_t>(rows + (size_t)row * columns, column * 4u);
    const size_t group = group_of((uint32_t)unit);
    out.group.scales = load_at<bits4_t>(scales + group * columns, column * 2u);
    out.group.zeros = load_at<uint32_t>(zeros + group * (columns / 8u), column / 8u * 4u);
    return out;
  }

  // The stored zero point of the first, second, third or fourth column.
  QC_INLINE uint32_t stored_zero(const UnitWords& unit, int c) const {
    return ((unit.group.zeros >> ((column & 4u) * 4u)) >> (4 * c)) & 15u;
  }
};

#endif

}  // namespace qcompile_rdna3
