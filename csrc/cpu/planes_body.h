// Integer codes of 1 to 8 bits at their own width times float32 numbers: one body for every ISA.
//
// The integer (word & mask of a code) is u * 2^place, so the x of that k is multiplied by 2^-place beforehand (exact) and no shift is
// needed; only the code that reaches the sign bit is shifted down, and the few that lie in pieces are put together. 8-bit codes were
// made unsigned by adding 128, which is subtracted at once, since small codes would drown in it.
// For few rows codes are decoded on the way to the multiplier; for more they are decoded once into the first cache, so that the
// products are the same code for every width.
// Sums are kept for at most 128 values of k before they are scaled and added to the total, which bounds the rounding error.
#pragma once

#include "cpu/planes_meta.h"

namespace qcompile {
namespace {

constexpr int64_t kRunHalves = 8;  // 128 positions
constexpr int64_t kRunK = kRunHalves * kHalfK;

// The lines of half a tile are fetched ahead of use.
template <int kBits, int kHalf, Fetch kFetch>
inline void fetch_half(const uint8_t* tile) {
  constexpr int kMiddle = (kBits + 1) / 2;
  for (int i = kHalf == 0 ? 0 : kMiddle; i < (kHalf == 0 ? kMiddle : kBits); ++i) fetch_ahead<kFetch>(tile + i * kLineBytes);
}

// Runs of half tiles that are summed before scaling, in a group.
inline int64_t group_runs(const PlanesShape& shape) { return (shape.group_halves() + kRunHalves - 1) / kRunHalves; }

// Few rows leave the multipliers waiting for the sum before: k then takes turns with several sums.
template <int R>
constexpr int chains_of() {
  return R * kParts <= 2 ? 4 : R * kParts < 8 ? 2 : 1;
}

template <int R, int kChain>
inline void multiply_one(const Floats (&weight)[kParts], const float* x, Floats (&sum)[chains_of<R>()][R][kParts]) {
  QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
    const Floats value = all(x[kChain * R + r]);
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[kChain][r][part] += weight[part] * value;
  }
}

// count positions of decoded weights times x.
template <int R, int... C>
inline void multiply(const Floats (*weights)[kParts], const float* x, int64_t count, Floats (&sum)[chains_of<R>()][R][kParts],
                     std::integer_sequence<int, C...>) {
  for (int64_t k = 0; k < count; k += chains_of<R>(), x += chains_of<R>() * R) (multiply_one<R, C>(weights[k + C], x, sum), ...);
}

template <int kBits, int64_t kRows>
struct PlanesBody {
  static constexpr int64_t kMostRows = kRows;
  static constexpr int kFused = 2;  // rows up to which codes are decoded on the way to the multiplier
  using Half = std::make_integer_sequence<int, kHalfK>;

  static int64_t parts(Dtype) { return 1; }

  // A prepared panel of R rows: [groups][runs][R] sums of x, then [padded k][R] scaled x.
  static int64_t row_bytes(const PlanesShape& shape) { return (shape.padded_k() + shape.groups() * group_runs(shape)) * 4; }

  template <int kPosition>
  static inline Floats decode(const uint8_t* tile, int part) {
    using At = Place<kBits, kPosition>;
    const Words bits = bits_at<kBits, kPosition>([&](int i) { return load<Words>(tile + i * kLineBytes + part * kWidth * 4); });
    const Floats code = to_floats(same_bits<Ints>(bits));
    return kBits == 8 ? code - static_cast<float>(uint64_t{128} << At::bit) : code;
  }

  template <int R, int kPosition>
  static inline void add_products(const uint8_t* tile, const float* x, Floats (&sum)[R][kParts]) {
    QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
      const Floats w = decode<kPosition>(tile, part);
      QCOMPILE_UNROLL for (int r = 0; r < R; ++r) sum[r][part] += w * all(x[kPosition % kHalfK * R + r]);
    }
  }

  template <int R, int kHalf, int... J>
  static inline void add_half(const uint8_t* tile, const float* x, Floats (&sum)[chains_of<R>()][R][kParts], std::integer_sequence<int, J...>) {
    fetch_half<kBits, kHalf, Fetch::once>(tile);
    (add_products<R, kHalf * kHalfK + J>(tile, x, sum[J % chains_of<R>()]), ...);
  }

  template <int kPosition>
  static inline void put(const uint8_t* tile, Floats (*to)[kParts]) {
    for (int part = 0; part < kParts; ++part) to[kPosition % kHalfK][part] = decode<kPosition>(tile, part);
  }

  template <int kHalf, int... J>
  static inline void decode_half(const uint8_t* tile, Floats (*to)[kParts], std::integer_sequence<int, J...>) {
    fetch_half<kBits, kHalf, Fetch::once>(tile);
    (put<kHalf * kHalfK + J>(tile, to), ...);
  }

  // Half tiles [half, half + count) of a block; not inlined, as every number of rows has the same.
  static __attribute__((noinline)) void decode_run(const uint8_t* tiles, int64_t half, int64_t count, Floats (*to)[kParts]) {
    for (int64_t i = half; i < half + count; ++i, to += kHalfK) {
      const uint8_t* const tile = tiles + i / 2 * kBits * kLineBytes;
      if (i % 2 == 0)
        decode_half<0>(tile, to, Half());
      else
        decode_half<1>(tile, to, Half());
    }
  }

  template <int R>
  static inline void add_run(const uint8_t* tiles, int64_t half, int64_t count, const float* x, Floats (&sum)[chains_of<R>()][R][kParts]) {
    if constexpr (R > kFused) {
      Floats weights[kRunK][kParts];
      decode_run(tiles, half, count, weights);
      multiply<R>(weights, x, count * kHalfK, sum, std::make_integer_sequence<int, chains_of<R>()>());
    } else {
      for (int64_t i = half; i < half + count; ++i, x += kHalfK * R) {
        const uint8_t* const tile = tiles + i / 2 * kBits * kLineBytes;
        if (i % 2 == 0)
          add_half<R, 0>(tile, x, sum, Half());
        else
          add_half<R, 1>(tile, x, sum, Half());
      }
    }
  }

  template <int R>
  static void run_panel(const PanelArgsOf<PlanesWeight>& args) {
    const PlanesWeight& weight = *args.weight;
    const PlanesShape& shape = weight.shape;
    const int64_t groups = shape.groups(), halves = shape.group_halves(), runs = group_runs(shape);
    const float* const sums = reinterpret_cast<const float*>(args.panel);
    Meta meta;
    begin_meta(weight, &meta);
    for (int64_t block = args.begin; block < args.end; ++block) {
      const uint8_t* const tiles = weight.codes + block * shape.lines() * kLineBytes;
      Floats total[R][kParts] = {};
      const float* x = sums + groups * runs * R;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t place = g % Meta::kGroups;
        if (place == 0) read_meta(weight, block, g, smaller(Meta::kGroups, groups - g), &meta);
        for (int64_t run = 0; run < runs; ++run) {
          Floats sum[chains_of<R>()][R][kParts];
          for (int c = 0; c < chains_of<R>(); ++c)
            QCOMPILE_UNROLL for (int r = 0; r < R; ++r)
              QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) sum[c][r][part] = Floats{};
          const int64_t count = smaller(kRunHalves, halves - run * kRunHalves);
          add_run<R>(tiles, g * halves + run * kRunHalves, count, x, sum);
          x += count * kHalfK * R;
          QCOMPILE_UNROLL for (int r = 0; r < R; ++r) {
            const Floats sum_x = all(sums[(g * runs + run) * R + r]);
            QCOMPILE_UNROLL for (int part = 0; part < kParts; ++part) {
              Floats all_chains = sum[0][r][part];
              for (int c = 1; c < chains_of<R>(); ++c) all_chains += sum[c][r][part];
              all_chains -= load<Floats>(meta.zero[place] + part * kWidth) * sum_x;
              total[r][part] += load<Floats>(meta.scale[place] + part * kWidth) * all_chains;
              if (weight.offsets != nullptr) total[r][part] += load<Floats>(meta.offset[place] + part * kWidth) * sum_x;
            }
          }
        }
      }
      for (int r = 0; r < R; ++r) store_row(args, r, block * kBlock, total[r]);
    }
  }

  template <int... J>
  static void find_places(float* places, std::integer_sequence<int, J...>) {
    ((places[J] = 1.0f / static_cast<float>(1u << Place<kBits, J>::bit)), ...);
  }

  static void prepare_panel(const PlanesWeight& weight, const LinearInput& input, uint8_t* out, int64_t first, int64_t count) {
    const PlanesShape& shape = weight.shape;
    const int64_t groups = shape.groups(), runs = group_runs(shape), group_k = shape.group_k();
    float* const sums = reinterpret_cast<float*>(out);
    float* const scaled = sums + groups * runs * count;
    float places[kTileK];
    find_places(places, std::make_integer_sequence<int, kTileK>());
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t group_end = smaller((g + 1) * shape.group, shape.k);
        for (int64_t run = 0; run < runs; ++run) {
          const int64_t from = run * kRunK, padded = smaller(kRunK, group_k - from), k = g * shape.group + from;
          float values[kRunK], sum[kHalfK] = {};
          read_row(input, first + row, k, larger(0, smaller(padded, group_end - k)), padded, values);
          float* to = scaled + (g * group_k + from) * count + row;
          for (int64_t i = 0; i < padded; i += kHalfK) {
            const float* const place = places + (g * group_k + from + i) % kTileK;
            for (int j = 0; j < kHalfK; ++j, to += count) {
              sum[j] += values[i + j];
              *to = values[i + j] * place[j];
            }
          }
          float all_sums = 0.0f;
          for (int j = 0; j < kHalfK; j += 2) all_sums += sum[j] + sum[j + 1];
          sums[(g * runs + run) * count + row] = all_sums;
        }
      }
    }
  }
};

}  // namespace
}  // namespace qcompile
